//! `POST /v1/signals`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::Served;
use super::error::ApiError;
use super::rows::read;
use crate::cache::encode_signal;
use crate::choose::choose;
use crate::protocol::NativeRequest;
use crate::signal::{Choice, Signal};

pub(super) async fn signals(
    State(served): State<Arc<Served>>,
    Json(request): Json<NativeRequest>,
) -> Result<Response, ApiError> {
    served.check_model(Some(&request.model))?;
    served.check_tokens(&request.tokens, 0)?;
    let NativeRequest { tokens, wanted, signal: spec, seed, .. } = request;
    if wanted.len() + 1 != tokens.len() {
        return Err(ApiError::bad(format!(
            "`wanted` has {} entries for a text of {} tokens, which has one position fewer",
            wanted.len(),
            tokens.len()
        )));
    }
    let sound = match spec.choice {
        Choice::TopK { k } => (1..=usize::from(u16::MAX)).contains(&k),
        Choice::Sampled { draws, power } => {
            (1..1 << 15).contains(&draws) && power > 0.0 && power <= 4.0
        }
    };
    let is_positive = spec.temperature > 0.0 && spec.temperature.is_finite();
    if !sound || !is_positive {
        return Err(ApiError::bad(format!("there is no such signal: {spec:?}")));
    }
    let draws = spec.choice.draws();
    let made = served.engine.run(served.options.timeout, move |session, _| {
        let text = &tokens[..wanted.len()];
        let choose = |position: usize, logits: &[f32]| match wanted[position] {
            true => choose(logits, &spec, seed, position as u64),
            false => Vec::new(),
        };
        let (rows, _) = read(session, text, choose)?;
        let mut signal = Signal::new(spec.choice.kind());
        rows.into_iter().for_each(|row| signal.push(row));
        Ok(encode_signal(&signal, draws))
    });
    let bytes = made.await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
