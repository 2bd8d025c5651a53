//! The element types a tensor may have.

/// A tensor's storage type, with the number it has in a file.
///
/// All but the integers, [`GgmlType::F64`] and the packed types can be dequantised; those are known
/// by their sizes only, so that a file which holds one can still be read.
///
/// The packed types are not ggml's: their numbers are far from any of its, so that its readers
/// refuse a file that has them. Their dims are those of whole groups of 16 rows.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum GgmlType {
    /// binary32.
    F32 = 0,
    /// binary16.
    F16 = 1,
    /// See [`distill_quant::q4_0`].
    Q4_0 = 2,
    /// See [`distill_quant::q4_1`].
    Q4_1 = 3,
    /// See [`distill_quant::q5_0`].
    Q5_0 = 6,
    /// See [`distill_quant::q5_1`].
    Q5_1 = 7,
    /// See [`distill_quant::q8_0`].
    Q8_0 = 8,
    /// See [`distill_quant::q4_k`].
    Q4_K = 12,
    /// See [`distill_quant::q5_k`].
    Q5_K = 13,
    /// See [`distill_quant::q6_k`].
    Q6_K = 14,
    /// 8-bit signed integers.
    I8 = 24,
    /// 16-bit signed integers.
    I16 = 25,
    /// 32-bit signed integers.
    I32 = 26,
    /// 64-bit signed integers.
    I64 = 27,
    /// binary64.
    F64 = 28,
    /// bfloat16.
    BF16 = 30,
    /// [`GgmlType::Q4_0`] in the order of [`distill_quant::packed`].
    Q4_0X16 = 16_002,
    /// [`GgmlType::Q8_0`] in the order of [`distill_quant::packed`].
    Q8_0X16 = 16_008,
}

impl GgmlType {
    /// Every type, in the order of its number.
    pub const ALL: [Self; 18] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::F64,
        Self::BF16,
        Self::Q4_0X16,
        Self::Q8_0X16,
    ];

    /// The type of number `id`, if it is one of these.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// The number that stands for the type in a file.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name, or ours of a packed type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F64 => "F64",
            Self::BF16 => "BF16",
            Self::Q4_0X16 => "Q4_0x16",
            Self::Q8_0X16 => "Q8_0x16",
        }
    }

    /// Elements in a block; rows are whole blocks.
    #[must_use]
    pub const fn block_elements(self) -> usize {
        match self {
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Q4_0X16
            | Self::Q8_0X16 => distill_quant::BLOCK,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => distill_quant::SUPER_BLOCK,
            _ => 1,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::Q4_0 | Self::Q4_0X16 => distill_quant::q4_0::BYTES,
            Self::Q4_1 => distill_quant::q4_1::BYTES,
            Self::Q5_0 => distill_quant::q5_0::BYTES,
            Self::Q5_1 => distill_quant::q5_1::BYTES,
            Self::Q8_0 | Self::Q8_0X16 => distill_quant::q8_0::BYTES,
            Self::Q4_K => distill_quant::q4_k::BYTES,
            Self::Q5_K => distill_quant::q5_k::BYTES,
            Self::Q6_K => distill_quant::q6_k::BYTES,
        }
    }

    /// Bytes of a tensor of these dims (row length first); `None` where a row is not whole blocks
    /// or the size does not fit a u64.
    #[must_use]
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let (&row, rest) = dims.split_first()?;
        let block = self.block_elements() as u64;
        if !row.is_multiple_of(block) {
            return None;
        }
        let row_bytes = (row / block).checked_mul(self.block_bytes() as u64)?;
        rest.iter().try_fold(row_bytes, |bytes, &dim| bytes.checked_mul(dim))
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_are_one_to_one() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
        }
        // Q2_K, the removed Q4_2, and numbers that were never given.
        for id in [4, 5, 9, 10, 29, 31, u32::MAX] {
            assert_eq!(GgmlType::from_id(id), None);
        }
    }

    #[test]
    fn sizes_are_whole_rows_and_never_overflow() {
        assert_eq!(GgmlType::Q4_0.tensor_bytes(&[576, 3]), Some(18 * 18 * 3));
        assert_eq!(GgmlType::F32.tensor_bytes(&[5]), Some(20));
        assert_eq!(GgmlType::Q4_0.tensor_bytes(&[33]), None);
        assert_eq!(GgmlType::Q6_K.tensor_bytes(&[576]), None);
        assert_eq!(GgmlType::F32.tensor_bytes(&[u64::MAX]), None);
        assert_eq!(GgmlType::I8.tensor_bytes(&[1 << 32, 1 << 32]), None);
        assert_eq!(GgmlType::F32.tensor_bytes(&[]), None);
    }
}
