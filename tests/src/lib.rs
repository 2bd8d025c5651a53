//! Whole-system specifications live in `tests/tests/`; this library is empty.
