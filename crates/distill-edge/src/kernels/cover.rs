//! Tiles of registers over the rows and tokens of a product of floats.

/// Covers [rows, tokens] with tiles of 2 × 4, 4 × 1 and 1 × 1.
///
/// `$tile::<R, T>([row; R], [token; T])` gives `[[f32; T]; R]`. A macro, because a function would
/// have to be compiled for the instruction set of each tile.
macro_rules! cover {
    // `y[(t + j) * stride + r + i] = tile[i][j]`.
    (@write $tile:expr, $y:expr, $stride:expr, $r:expr, $t:expr) => {
        for (i, row) in $tile.into_iter().enumerate() {
            for (j, value) in row.into_iter().enumerate() {
                $y[($t + j) * $stride + $r + i] = value;
            }
        }
    };
    ($rows:expr, $tokens:expr, $y:expr, $stride:expr, $tile:ident, $row:expr, $token:expr) => {{
        let (rows, tokens) = ($rows, $tokens);
        let quads = tokens / 4 * 4;
        let mut r = 0;
        while r < rows {
            let pair = r + 2 <= rows;
            for t in (0..quads).step_by(4) {
                let x = [$token(t), $token(t + 1), $token(t + 2), $token(t + 3)];
                if pair {
                    cover!(@write $tile::<2, 4>([$row(r), $row(r + 1)], x), $y, $stride, r, t);
                } else {
                    cover!(@write $tile::<1, 4>([$row(r)], x), $y, $stride, r, t);
                }
            }
            r += 2;
        }
        for t in quads..tokens {
            let mut r = 0;
            while r + 4 <= rows {
                let w = [$row(r), $row(r + 1), $row(r + 2), $row(r + 3)];
                cover!(@write $tile::<4, 1>(w, [$token(t)]), $y, $stride, r, t);
                r += 4;
            }
            while r < rows {
                cover!(@write $tile::<1, 1>([$row(r)], [$token(t)]), $y, $stride, r, t);
                r += 1;
            }
        }
    }};
}

pub(super) use cover;
