//! What the fuzz targets share: an allocator that counts, the bounds it is held against, and a
//! writer of small files, valid or not.

pub mod container;
pub mod limits;
pub mod meter;
pub mod run;
pub mod states;
