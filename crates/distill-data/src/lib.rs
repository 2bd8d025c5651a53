//! Text sources, tokenisation, chat templates, packing and the resumable cursor
