//! Block quantisation grids: structs, scalar quantise and dequantise
