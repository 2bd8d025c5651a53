use distill_data::*;
use std::path::Path;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let file = distill_gguf::GgufFile::open(Path::new(&a[1])).unwrap();
    let begun = std::time::Instant::now();
    let t = TextTokenizer::from_gguf(&file).unwrap();
    println!("built {:?}", begun.elapsed());
    t.save(Path::new(&a[2])).unwrap();
    println!("{:?} {:?} {:?} {:?} {}", t.bos(), t.eos(), t.pad(), t.unk(), t.vocab_size());
    println!("{:?}", t.encode("The year 1984, it's <|im_start|>x\n\n  été", true).unwrap());
    println!("{:?}", t.render_chat(&[Message::new("user", "Hi")], true));
    let r = TextTokenizer::from_directory(Path::new(&a[2])).unwrap();
    println!("same {:?} {} {}", r.check_same_vocabulary(&t), r.fingerprint(), t.fingerprint());
    if let Some(inp) = a.get(3) {
        let inp = std::fs::read_to_string(inp).unwrap();
        let out = std::fs::read_to_string(a[3].replace(".inp", ".out")).unwrap();
        let mut n = 0;
        for (text, line) in inp.split("\n__ggml_vocab_test__\n").zip(out.lines()) {
            let ids: Vec<u32> = line.split_whitespace().map(|x| x.parse().unwrap()).collect();
            assert_eq!(t.encode(text, false).unwrap(), ids, "{text:?}");
            n += 1;
        }
        println!("{n} vectors agree");
    }
    if let Some(txt) = a.get(4) {
        let o = SourceOptions {
            document_separator: a.get(5).map(|s| s.replace("\\n", "\n")),
            ..Default::default()
        };
        let s = Source::resolve(txt, &o).unwrap();
        let begun = std::time::Instant::now();
        let d = Dataset::prepare(
            &t,
            &s,
            &PackingOptions { sequence_length: 512, held_out_fraction: 0.05, seed: 42 },
        )
        .unwrap();
        println!(
            "{:?} {:?} {:?} train {} held {} tokens {} {}",
            begun.elapsed(),
            d.rule,
            d.read,
            d.train.len(),
            d.held_out.len(),
            d.train.tokens(),
            d.held_out.tokens()
        );
        println!("{}", &preview(&t, &d.train.sequence(0))[..600]);
        let begun = std::time::Instant::now();
        let n =
            TextTokenizer::train(documents(&s).unwrap(), 2048, &SpecialTokens::default()).unwrap();
        println!("trained {} in {:?}", n.vocab_size(), begun.elapsed());
    }
}
