//! Answers as the servers' own schemas have them, and each way in which they can mislead.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use distill_data::SpecialTokens;
use serde_json::{Value, json};

use super::*;
use crate::cache::encode_signal;
use crate::signal::{Choice, Kind, Signal};
use distill_data::TextTokenizer;

const VOCABULARY: usize = 300;

fn spec(k: usize) -> Spec {
    Spec { choice: Choice::TopK { k }, temperature: 1.0 }
}

fn query(tokens: &[u32]) -> Query {
    Query { start: 0, tokens: tokens.to_vec(), wanted: vec![true; tokens.len() - 1] }
}

fn vocabulary() -> Arc<Vocabulary> {
    let texts = ["a stitch in time saves nine, so they say: ünïcödé", "the cat sat on the mat"];
    let texts = texts.into_iter().map(|text| Ok(text.to_owned()));
    let tokenizer = TextTokenizer::train(texts, VOCABULARY, &SpecialTokens::default()).unwrap();
    Arc::new(Vocabulary::new(&tokenizer))
}

fn ask(name: Name) -> Box<dyn Protocol> {
    protocol(name, "m", vocabulary())
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Reads an answer and holds it against what every distribution has, as the client does.
fn read(
    protocol: &dyn Protocol,
    query: &Query,
    spec: &Spec,
    replies: &[Value],
) -> Result<Scored, String> {
    let replies: Vec<Vec<u8>> = replies.iter().map(bytes).collect();
    let scored = protocol.read(query, spec, &replies).map_err(|misread| misread.0)?;
    let vocabulary = vocabulary().size();
    check(&scored, query, spec, vocabulary, protocol.is_complete()).map_err(|m| m.0)?;
    Ok(scored)
}

/// ln p of two tokens and of the one that follows, if that is a third.
const TOP: [(u32, f32); 2] = [(20, -0.5), (21, -1.5)];

/// Says that [`TOP`] follow every token, and also that which does.
fn expected(tokens: &[u32]) -> Scored {
    let followed = |id: u32| TOP.iter().find(|e| e.0 == id).map_or(-6.0, |e| e.1);
    Scored {
        positions: vec![TOP.to_vec(); tokens.len() - 1],
        followed: tokens[1..].iter().map(|&id| Some(followed(id))).collect(),
    }
}

/// The rows of [`expected`] with the token that follows: (id, ln p, rank).
fn rows(tokens: &[u32]) -> Vec<Vec<(u32, f32, u64)>> {
    let row = |&id: &u32| {
        let mut row = vec![(21, -1.5, 2), (20, -0.5, 1)];
        if !TOP.iter().any(|entry| entry.0 == id) {
            row.insert(0, (id, -6.0, 57));
        }
        row
    };
    tokens[1..].iter().map(row).collect()
}

mod vllm {
    use super::*;

    /// As `CompletionResponse` of vLLM 0.11 has it.
    fn reply(tokens: &[u32]) -> Value {
        let mut logprobs = vec![Value::Null];
        for row in rows(tokens) {
            let mut object = serde_json::Map::new();
            for (id, log_p, rank) in row {
                let entry = json!({"logprob": log_p, "rank": rank, "decoded_token": "x"});
                object.insert(id.to_string(), entry);
            }
            logprobs.push(Value::Object(object));
        }
        json!({
            "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{
                "index": 0, "text": " x", "logprobs": null, "finish_reason": "length",
                "stop_reason": null, "token_ids": [7], "prompt_logprobs": logprobs,
                "prompt_token_ids": tokens,
            }],
            "usage": {"prompt_tokens": tokens.len(), "total_tokens": 1, "completion_tokens": 1},
            "kv_transfer_params": null,
        })
    }

    const TOKENS: [u32; 4] = [5, 20, 9, 21];

    #[test]
    fn the_entry_that_follows_is_one_more_or_one_of_k() {
        let (protocol, query) = (ask(Name::Vllm), query(&TOKENS));
        let found = read(&*protocol, &query, &spec(2), &[reply(&TOKENS)]).unwrap();
        assert_eq!(found, expected(&TOKENS));
    }

    #[test]
    fn ids_are_asked_about_and_nothing_is_left_to_the_servers_defaults() {
        let requests = ask(Name::Vllm).requests(&query(&TOKENS), &spec(2), 0);
        assert_eq!(requests.len(), 1);
        let body = &requests[0].body;
        assert_eq!(
            (requests[0].path, &body["prompt"]),
            ("/v1/completions", &json!([5, 20, 9, 21]))
        );
        assert_eq!((&body["prompt_logprobs"], &body["max_tokens"]), (&json!(2), &json!(1)));
        assert_eq!((&body["temperature"], &body["top_p"]), (&json!(1.0), &json!(1.0)));
    }

    #[test]
    fn what_cannot_be_the_answer_is_refused_by_name() {
        type Change = Box<dyn Fn(&mut Value)>;
        let at = |change: fn(&mut Vec<Value>)| -> Change {
            Box::new(move |reply| {
                change(reply["choices"][0]["prompt_logprobs"].as_array_mut().unwrap());
            })
        };
        let cases: [(&str, Change); 12] = [
            ("3 tokens of a text of 4", at(|rows| drop(rows.remove(0)))),
            ("though nothing stands before it", at(|rows| rows[0] = rows[1].clone())),
            ("token 2 has no log-probabilities", at(|rows| rows[2] = Value::Null)),
            ("not among its own log-probabilities", at(|rows| rows.swap(2, 3))),
            (
                "called \"x\"",
                at(|rows| {
                    rows[1].as_object_mut().unwrap().insert("x".into(), json!({"logprob": -9.0}));
                }),
            ),
            (
                "it has 1 tokens, and 2 were asked for",
                at(|rows| {
                    rows[1].as_object_mut().unwrap().remove("21");
                }),
            ),
            ("is 0.3", at(|rows| rows[1]["20"]["logprob"] = json!(0.3))),
            ("add up to", at(|rows| rows[1]["21"]["logprob"] = json!(-0.6))),
            (
                "no token 5000",
                at(|rows| {
                    let row = rows[1].as_object_mut().unwrap();
                    row.insert("5000".into(), json!({"logprob": -0.7, "rank": 1}));
                }),
            ),
            (
                "read token 6 where 5 was sent, at 0",
                Box::new(|reply| {
                    reply["choices"][0]["prompt_token_ids"][0] = json!(6);
                }),
            ),
            (
                "read 5 tokens, 4 were sent",
                Box::new(|reply| {
                    let ids = &mut reply["choices"][0]["prompt_token_ids"];
                    ids.as_array_mut().unwrap().push(json!(1));
                }),
            ),
            (
                "no `prompt_logprobs`",
                Box::new(|reply| {
                    reply["choices"][0]["prompt_logprobs"] = Value::Null;
                }),
            ),
        ];
        let protocol = ask(Name::Vllm);
        for (expected, change) in cases {
            let mut reply = reply(&TOKENS);
            change(&mut reply);
            let error = read(&*protocol, &query(&TOKENS), &spec(2), &[reply]).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(protocol.read(&query(&TOKENS), &spec(2), &[b"<html>".to_vec()]).is_err());
    }
}

mod sglang {
    use super::*;

    const TOKENS: [u32; 4] = [5, 20, 9, 21];

    fn reply() -> Value {
        json!({
            "text": "",
            "meta_info": {
                "id": "1", "finish_reason": {"type": "length", "length": 0}, "prompt_tokens": 4,
                "input_token_logprobs":
                    [[null, 5, null], [-0.5, 20, null], [-6.0, 9, null], [-1.5, 21, null]],
                "output_token_logprobs": [],
                "input_top_logprobs": [
                    null,
                    [[-0.5, 20, null], [-1.5, 21, null]],
                    [[-0.5, 20, null], [-1.5, 21, null]],
                    [[-0.5, 20, null], [-1.5, 21, null]],
                ],
                "output_top_logprobs": [], "completion_tokens": 0, "cached_tokens": 0,
            },
        })
    }

    #[test]
    fn the_first_null_stands_for_nothing() {
        let found = read(&*ask(Name::Sglang), &query(&TOKENS), &spec(2), &[reply()]).unwrap();
        assert_eq!(found, expected(&TOKENS));
        let requests = ask(Name::Sglang).requests(&query(&TOKENS), &spec(2), 0);
        let body = &requests[0].body;
        assert_eq!((requests[0].path, &body["input_ids"]), ("/generate", &json!([5, 20, 9, 21])));
        assert_eq!((&body["logprob_start_len"], &body["top_logprobs_num"]), (&json!(0), &json!(2)));
    }

    #[test]
    fn shifted_doubled_and_other_texts_are_refused() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 5] = [
            ("3 tokens of a text of 4", |meta| {
                meta["input_top_logprobs"].as_array_mut().unwrap().remove(0);
            }),
            ("though nothing stands before it", |meta| {
                meta["input_top_logprobs"].as_array_mut().unwrap().rotate_left(1);
            }),
            ("though nothing stands before it", |meta| {
                meta["input_token_logprobs"][0][0] = json!(-3.0);
            }),
            ("read token 1 where 5 was sent", |meta| meta["input_token_logprobs"][0][1] = json!(1)),
            ("not as expected", |meta| meta["input_top_logprobs"] = json!("none")),
        ];
        for (expected, change) in cases {
            let mut reply = reply();
            change(&mut reply["meta_info"]);
            let protocol = ask(Name::Sglang);
            let error = read(&*protocol, &query(&TOKENS), &spec(2), &[reply]).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}

mod trl {
    use super::*;

    const TOKENS: [u32; 4] = [5, 20, 9, 21];

    fn packed<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> String {
        STANDARD.encode(values.iter().flat_map(|&value| bytes(value)).collect::<Vec<u8>>())
    }

    fn reply(echoed: &[i32], lengths: &[usize], log_p: &[f32]) -> Value {
        let ids: Vec<i32> = [20, 21].repeat(4);
        json!({
            "logprobs_b64": packed(log_p, f32::to_le_bytes),
            "token_ids_b64": packed(&ids, i32::to_le_bytes),
            "actual_logprobs_b64": packed(&[-0.5, -6.0, -1.5, f32::NEG_INFINITY], f32::to_le_bytes),
            "actual_token_ids_b64": packed(echoed, i32::to_le_bytes),
            "shape": [1, 4, 2], "completion_lengths": lengths,
        })
    }

    #[test]
    fn rows_beyond_the_text_are_padding() {
        let (inf, query) = (f32::NEG_INFINITY, query(&TOKENS));
        let log_p = [-0.5, -1.5, -0.5, -1.5, -0.5, -1.5, inf, inf];
        let good = reply(&[20, 9, 21, 0], &[3], &log_p);
        assert_eq!(read(&*ask(Name::Trl), &query, &spec(2), &[good]).unwrap(), expected(&TOKENS));
        let requests = ask(Name::Trl).requests(&query, &spec(2), 0);
        assert_eq!(requests[0].body["prompt_lengths"], json!([1]));
        let cases = [
            (reply(&[20, 9, 22, 0], &[3], &log_p), "read token 22 where 21 was sent"),
            (reply(&[20, 9, 21, 0], &[4], &log_p), "lengths [4]"),
            (reply(&[20, 9, 21, 0], &[3], &log_p[1..]), "28 bytes, not 8 numbers"),
            (
                reply(&[20, 9, 21, 0], &[3], &[-0.5, -1.5, -0.5, inf, -0.5, -1.5, inf, inf]),
                "after token 1: it has 1 tokens",
            ),
        ];
        let mut empty = reply(&[20, 9, 21, 0], &[3], &[]);
        (empty["shape"], empty["token_ids_b64"]) = (json!([1, 4, 0]), json!(""));
        for (reply, expected) in cases.into_iter().chain([(empty, "no tokens")]) {
            let error = read(&*ask(Name::Trl), &query, &spec(2), &[reply]).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}

mod llama_server {
    use super::*;

    fn reply(read: usize) -> Value {
        json!({
            "index": 0, "content": "x", "tokens": [20], "id_slot": 0, "stop": true,
            "tokens_predicted": 1, "tokens_evaluated": read, "tokens_cached": read,
            "completion_probabilities": [{
                "id": 20, "token": "x", "bytes": [120], "logprob": -0.5,
                "top_logprobs": [
                    {"id": 20, "token": "x", "bytes": [120], "logprob": -0.5},
                    {"id": 21, "token": "y", "bytes": [121], "logprob": -1.5},
                ],
            }],
        })
    }

    #[test]
    fn each_wanted_position_is_a_request_of_its_own() {
        let mut query = query(&[5, 20, 9, 21]);
        query.wanted[1] = false;
        let protocol = ask(Name::LlamaServer);
        let requests = protocol.requests(&query, &spec(2), 0);
        let prompts: Vec<&Value> = requests.iter().map(|request| &request.body["prompt"]).collect();
        assert_eq!(prompts, [&json!([5]), &json!([5, 20, 9])]);
        let found = read(&*protocol, &query, &spec(2), &[reply(1), reply(3)]).unwrap();
        assert_eq!(found.positions, [TOP.to_vec(), vec![], TOP.to_vec()]);
        assert_eq!(found.followed, [Some(-0.5), None, Some(-1.5)]);
        let error = read(&*protocol, &query, &spec(2), &[reply(2), reply(4)]).unwrap_err();
        assert!(error.contains("read 2 tokens, 1 were sent: a beginning"), "{error}");
        let error = read(&*protocol, &query, &spec(2), &[reply(1)]).unwrap_err();
        assert!(error.contains("not one answer for each"), "{error}");
    }
}

mod openai {
    use super::*;

    const TEXT: &str = "the cat sat on the mat, so they say, in time: ünï";

    fn tokens() -> Vec<u32> {
        vocabulary().tokenizer().encode(TEXT, false).unwrap()
    }

    /// What a server spells a token as that decodes each by itself and leaves out what is no character.
    fn spelt(id: u32) -> String {
        vocabulary().tokenizer().decode(&[id]).replace('\u{fffd}', "")
    }

    fn reply(tokens: &[u32]) -> Value {
        let spelt = |id: u32| spelt(id);
        let row = |&id: &u32| json!({spelt(tokens[0]): -0.5, "": -1.2, spelt(id): -1.5});
        let mut rows: Vec<Value> = tokens.iter().map(row).collect();
        rows[0] = Value::Null;
        let mut followed: Vec<Option<f32>> = vec![Some(-1.5); tokens.len()];
        followed[0] = None;
        json!({"choices": [{"text": TEXT, "index": 0, "logprobs": {
            "tokens": tokens.iter().map(|&id| spelt(id)).collect::<Vec<_>>(),
            "token_logprobs": followed, "top_logprobs": rows, "text_offset": [],
        }}]})
    }

    #[test]
    fn tokens_are_found_by_their_text_and_parts_of_characters_go_to_the_bucket() {
        let tokens = tokens();
        let found =
            read(&*ask(Name::Openai), &query(&tokens), &spec(3), &[reply(&tokens)]).unwrap();
        assert_eq!(found.positions[0][0], (tokens[0], -0.5));
        assert!(found.positions.iter().flatten().all(|entry| entry.1 != -1.2), "the text \"\"");
        assert_eq!(found.followed, vec![Some(-1.5); tokens.len() - 1]);
        let body = &ask(Name::Openai).requests(&query(&tokens), &spec(3), 0)[0].body;
        assert_eq!((&body["prompt"], &body["echo"]), (&json!(TEXT), &json!(true)));
    }

    #[test]
    fn a_server_that_cuts_otherwise_is_followed_up_to_there_and_refused_if_that_is_early() {
        let tokens = tokens();
        let read_with = |change: &dyn Fn(&mut Value)| {
            let mut reply = reply(&tokens);
            change(&mut reply["choices"][0]["logprobs"]);
            read(&*ask(Name::Openai), &query(&tokens), &spec(3), &[reply])
        };
        let at = tokens.len() - 2;
        let found = read_with(&|found| found["tokens"][at] = json!("other")).unwrap();
        assert!(!found.positions[at - 2].is_empty() && found.positions[at - 1].is_empty());
        let error = read_with(&|found| found["tokens"][2] = json!("other")).unwrap_err();
        assert!(error.contains("\"other\" where") && error.contains("token 2"), "{error}");
        let error = read_with(&|found| found["top_logprobs"][0] = json!({})).unwrap_err();
        assert!(error.contains("nothing stands before it"), "{error}");
        let error = read_with(&|found| found["tokens"].as_array_mut().unwrap().clear());
        assert!(error.unwrap_err().contains("no rows"));
    }

    #[test]
    fn rows_after_a_token_are_those_of_the_next() {
        let tokens = tokens();
        let mut protocol = ask(Name::LlamaCppPython);
        assert!(protocol.may_be_shifted() && !ask(Name::Openai).may_be_shifted());
        protocol.set_rows(Rows::AfterToken);
        let mut reply = reply(&tokens);
        let rows = reply["choices"][0]["logprobs"]["top_logprobs"].as_array_mut().unwrap();
        rows.rotate_left(1);
        rows[0] = Value::Null;
        let found = read(&*protocol, &query(&tokens), &spec(3), &[reply]).unwrap();
        assert!(found.positions[0].is_empty(), "the server leaves out a good row");
        let texts = |position: usize| found.positions[position].iter().any(|e| e.1 == -1.5);
        assert!(texts(1) && found.followed[1] == Some(-1.5));
    }
}

mod native {
    use super::*;

    #[test]
    fn a_packed_signal_is_the_answer() {
        let tokens = [5, 20, 9];
        let mut signal = Signal::new(Kind::TopK);
        signal.push(TOP);
        signal.push(TOP);
        let protocol = ask(Name::Distill);
        let reply = encode_signal(&signal, 1);
        let scored =
            protocol.read(&query(&tokens), &spec(2), std::slice::from_ref(&reply)).unwrap();
        assert_eq!(scored.positions[1].iter().map(|e| e.0).collect::<Vec<_>>(), [20, 21]);
        let mut other = query(&tokens);
        other.wanted[0] = false;
        for (query, reply) in
            [(query(&[1, 2]), &reply[..]), (other, &reply), (query(&tokens), b"x")]
        {
            assert!(protocol.read(&query, &spec(2), &[reply.to_vec()]).is_err());
        }
        let request = &protocol.requests(&query(&tokens), &spec(2), 9)[0];
        let back: NativeRequest = serde_json::from_value(request.body.clone()).unwrap();
        assert_eq!((request.path, back.tokens, back.seed), (SIGNALS_PATH, tokens.to_vec(), 9));
    }
}
