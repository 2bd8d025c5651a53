//! A tensor's record, and its bytes.

use std::ops::Range;
use std::path::Path;

use crate::{GgmlType, GgufError};

/// What a file says of a tensor. Everything in it has been checked against the file's length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// The name, unique in the file.
    pub name: String,
    /// The dims in ggml's order: `dims[0]` is the length of a row, the input dimension. One to
    /// four, none zero. A Hugging Face weight `[out, in]` has dims `[in, out]`.
    pub dims: Vec<u64>,
    /// The storage type.
    pub ty: GgmlType,
    /// Where the data begin, counted from the start of the data section.
    pub offset: u64,
    /// Where the data stand in the whole file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements of the tensor.
    #[must_use]
    pub fn elements(&self) -> usize {
        // Cannot overflow: the bytes that hold them were found in the file.
        self.range.len() / self.ty.block_bytes() * self.ty.block_elements()
    }

    /// Elements of a row.
    #[must_use]
    pub fn row_elements(&self) -> usize {
        self.elements() / self.rows()
    }

    /// Rows: the product of all dims but the first.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.range.len() / self.row_bytes()
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        // A row is no longer than the tensor, whose bytes were found in the file.
        self.dims[0] as usize / self.ty.block_elements() * self.ty.block_bytes()
    }
}

/// A tensor's record with its bytes, in the file's own layout.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The record.
    pub info: &'a TensorInfo,
    /// The data: `info.rows()` rows of `info.row_bytes()`.
    pub bytes: &'a [u8],
    pub(crate) file: &'a Path,
}

impl<'a> TensorView<'a> {
    /// Rows: the product of all dims but the first.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.info.rows()
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.info.row_bytes()
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, i: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.bytes[i * bytes..][..bytes]
    }

    /// All values as f32, row after row.
    ///
    /// # Errors
    /// If the type is an integer, F64 or packed.
    pub fn dequantize(&self) -> Result<Vec<f32>, GgufError> {
        let mut values = vec![0.0; self.info.elements()];
        self.dequantize_rows(0, &mut values)?;
        Ok(values)
    }

    /// The values of as many rows as `values` holds, from row `first`.
    ///
    /// # Errors
    /// If the type is an integer, F64 or packed.
    ///
    /// # Panics
    /// If `values` is not whole rows, or there are not so many.
    pub fn dequantize_rows(&self, first: usize, values: &mut [f32]) -> Result<(), GgufError> {
        let row = self.info.row_elements();
        assert!(values.len().is_multiple_of(row), "{} values in rows of {row}", values.len());
        let rows = values.len() / row;
        let bytes = &self.bytes[first * self.row_bytes()..(first + rows) * self.row_bytes()];
        match self.info.ty {
            GgmlType::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            GgmlType::F16 => distill_quant::f16::dequantize(bytes, values),
            GgmlType::BF16 => distill_quant::bf16::dequantize(bytes, values),
            GgmlType::Q4_0 => distill_quant::q4_0::dequantize(bytes, values),
            GgmlType::Q4_1 => distill_quant::q4_1::dequantize(bytes, values),
            GgmlType::Q5_0 => distill_quant::q5_0::dequantize(bytes, values),
            GgmlType::Q5_1 => distill_quant::q5_1::dequantize(bytes, values),
            GgmlType::Q8_0 => distill_quant::q8_0::dequantize(bytes, values),
            GgmlType::Q4_K => distill_quant::q4_k::dequantize(bytes, values),
            GgmlType::Q5_K => distill_quant::q5_k::dequantize(bytes, values),
            GgmlType::Q6_K => distill_quant::q6_k::dequantize(bytes, values),
            GgmlType::I8
            | GgmlType::I16
            | GgmlType::I32
            | GgmlType::I64
            | GgmlType::F64
            | GgmlType::Q4_0X16
            | GgmlType::Q8_0X16 => {
                return Err(GgufError::NotDequantizable {
                    file: self.file.to_owned(),
                    tensor: self.info.name.clone(),
                    ty: self.info.ty,
                });
            }
        }
        Ok(())
    }
}
