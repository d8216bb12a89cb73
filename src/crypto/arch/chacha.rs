//! A pass of ChaCha20 (RFC 8439 §2.3): what is the same for every vector.
//!
//! A state is 16 vectors: register *w* holds word *w* of as many blocks as a vector has lanes. A pass works on two states, or on one if
//! there are no more blocks. It is a macro, as functions of 16 vectors are not inlined.

/// RFC 8439 §2.3: words 0 to 3.
pub(super) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Defines `pass` for vectors of `$width` lanes.
///
/// From where it is called it takes `splat`, `load` and `store`; `crypt_whole` and `crypt_masked`, which XOR a block onto the text of a
/// lane; and macros: `add!(a, b)`; `double_round!(shuffles, [states])`, `shuffles` being `$shuffles`; `blocks!(state)`, which turns words
/// of many blocks into blocks; and `block!(blocks, lane)`, which picks one.
macro_rules! pass {
    ($features:literal, $width:literal, $shuffles:expr) => {
        /// Computes the keystream of all lanes; key blocks go to `keys`, the rest onto the text. `key` is only read unless `MIXED`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        pub(super) fn pass<const MIXED: bool>(lanes: &Lanes, key: &[u32; 8], keys: &mut PolyKeys) {
            /// The state that the rounds start from, of the lanes from `$at` on.
            macro_rules! input {
                ($lanes:ident, $key:ident, $at:literal) => {{
                    let mut state = [splat(0); 16];
                    for word in 0..4 {
                        state[word] = splat(CONSTANTS[word]);
                    }
                    for word in 0..8 {
                        state[4 + word] =
                            if MIXED { load(&$lanes.key[word], $at) } else { splat($key[word]) };
                    }
                    state[12] = load(&$lanes.block, $at);
                    state[14] = load(&$lanes.nonce[0], $at);
                    state[15] = load(&$lanes.nonce[1], $at);
                    state
                }};
            }

            /// Adds to `$state` what it started from.
            macro_rules! add_input {
                ($state:ident, $lanes:ident, $key:ident, $at:literal) => {
                    let input = input!($lanes, $key, $at);
                    for word in 0..16 {
                        $state[word] = add!($state[word], input[word]);
                    }
                };
            }

            /// XORs `$state` onto the text of the lanes from `$at` on.
            macro_rules! crypt {
                ($state:ident, $lanes:ident, $at:literal) => {
                    let blocks = blocks!($state);
                    if $lanes.is_whole {
                        for lane in 0..$width {
                            crypt_whole($lanes, $at + lane, block!(blocks, lane));
                        }
                    } else {
                        for lane in 0..$width {
                            crypt_masked($lanes, $at + lane, block!(blocks, lane));
                        }
                    }
                };
            }

            let shuffles = $shuffles;
            if lanes.used > $width {
                let mut x = input!(lanes, key, 0);
                let mut y = input!(lanes, key, $width);
                for _ in 0..10 {
                    double_round!(shuffles, [x, y]);
                }
                // Read again: else the vectors that both ends have in common are kept, and there is no register for them.
                let (lanes, key) = black_box((lanes, key));
                add_input!(x, lanes, key, 0);
                add_input!(y, lanes, key, $width);
                if lanes.key_blocks > 0 {
                    for (row, (&x, &y)) in keys.0.iter_mut().zip(x.iter().zip(&y)) {
                        store(row, lanes.first_key, x);
                        store(row, lanes.first_key + $width, y);
                    }
                    if lanes.key_blocks == lanes.used {
                        return;
                    }
                }
                crypt!(x, lanes, 0);
                crypt!(y, lanes, $width);
            } else {
                let mut x = input!(lanes, key, 0);
                for _ in 0..10 {
                    double_round!(shuffles, [x]);
                }
                add_input!(x, lanes, key, 0);
                if lanes.key_blocks > 0 {
                    for (row, &x) in keys.0.iter_mut().zip(&x) {
                        store(row, lanes.first_key, x);
                    }
                    if lanes.key_blocks == lanes.used {
                        return;
                    }
                }
                crypt!(x, lanes, 0);
            }
        }
    };
}
pub(super) use pass;
