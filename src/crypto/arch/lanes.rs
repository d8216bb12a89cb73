//! The tables that the batch writes and the kernels read, and every pointer in them.
//!
//! Pointers come from the slices that a [`Packet`] is made of, and a packet lives no longer than those. No reference to their bytes
//! exists while a batch runs, so that a source may be its own destination.

use std::array;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use super::{Kernel, Way};

/// Packets in a batch.
pub(in crate::crypto) const BATCH_MAX: usize = 64;
/// Blocks in a pass of any kernel.
pub(super) const LANES_MAX: usize = 32;
/// Packets in a group of any kernel.
pub(super) const GROUP_MAX: usize = 8;
/// Bytes in a block of ChaCha20.
const BLOCK_LEN: usize = 64;
/// Bytes in a block of Poly1305.
const POLY_BLOCK_LEN: usize = 16;
/// Rows are written in pieces of this many lanes, and may be overrun by less than one.
const PIECE: usize = 16;

/// One packet: where its text lies, and where the result goes.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct Packet<'a> {
    key: &'a [u32; 8],
    counter: u64,
    /// The text is `parts` and zeros behind them. Each is readable, and disjoint from `dst` or the same as it.
    parts: [(*const u8, usize); 2],
    /// Writable for `len` bytes; when sealing, for 16 more.
    dst: *mut u8,
    /// Of the text, without the tag. When opening, it is the length of `parts[0]`, and 16 more are readable behind that.
    len: usize,
    slices: PhantomData<&'a mut [u8]>,
}

impl<'a> Packet<'a> {
    /// `dst` gets the concatenation of `parts`, zeros behind it, and 16 bytes of tag.
    ///
    /// # Panics
    /// If there is no room for those.
    pub(in crate::crypto) fn to_seal(
        key: &'a [u32; 8],
        counter: u64,
        parts: [&'a [u8]; 2],
        dst: &'a mut [u8],
    ) -> Self {
        let room = dst.len().checked_sub(16).expect("there is room for the tag");
        let len = parts[0].len() + parts[1].len();
        assert!(len <= room, "{len} bytes do not fit into {room}");
        let parts = parts.map(|part| (part.as_ptr(), part.len()));
        Self { key, counter, parts, dst: dst.as_mut_ptr(), len: room, slices: PhantomData }
    }

    /// The last 16 bytes of `buf` become the tag of those before them.
    ///
    /// # Panics
    /// If there is no room for a tag.
    pub(in crate::crypto) fn to_seal_in_place(key: &'a [u32; 8], counter: u64, buf: &'a mut [u8]) -> Self {
        let len = buf.len().checked_sub(16).expect("there is room for the tag");
        let dst = buf.as_mut_ptr();
        Self { key, counter, parts: in_place(dst, len), dst, len, slices: PhantomData }
    }

    /// The last 16 bytes of `buf` are the tag of those before them.
    ///
    /// # Panics
    /// If there is no tag.
    pub(in crate::crypto) fn to_open_in_place(key: &'a [u32; 8], counter: u64, buf: &'a mut [u8]) -> Self {
        let len = buf.len().checked_sub(16).expect("there is a tag");
        let dst = buf.as_mut_ptr();
        Self { key, counter, parts: in_place(dst, len), dst, len, slices: PhantomData }
    }

    /// The last 16 bytes of `src` are the tag of those before them, for which `dst` has room.
    ///
    /// # Panics
    /// If there is no tag, or `dst` has another length than the plaintext.
    pub(in crate::crypto) fn to_open(
        key: &'a [u32; 8],
        counter: u64,
        src: &'a [u8],
        dst: &'a mut [u8],
    ) -> Self {
        let len = src.len().checked_sub(16).expect("there is a tag");
        assert_eq!(dst.len(), len, "the plaintext has another length");
        let parts = in_place(src.as_ptr(), len);
        Self { key, counter, parts, dst: dst.as_mut_ptr(), len, slices: PhantomData }
    }

    /// Returns the length of the text.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the words of the key.
    pub(super) fn key(&self) -> &'a [u32; 8] {
        self.key
    }

    /// Returns where to read text from `at` on, a multiple of 64, and how much of it: all that is left, or whole blocks.
    ///
    /// A block across the seam of two parts, or of a part and the zeros, is put together in its destination first.
    #[inline(always)]
    fn stretch(&self, at: usize) -> (*const u8, usize) {
        let rest = self.len - at;
        let [(head, head_len), (tail, tail_len)] = self.parts;
        let (src, len) = if at < head_len {
            (head.wrapping_add(at), head_len - at)
        } else {
            (tail.wrapping_add(at - head_len), (head_len + tail_len).saturating_sub(at))
        };
        if len >= rest {
            (src, rest)
        } else if len >= BLOCK_LEN {
            (src, len - len % BLOCK_LEN)
        } else {
            let len = rest.min(BLOCK_LEN);
            self.gather(at, len);
            (self.dst.wrapping_add(at), len)
        }
    }

    /// Puts `len` bytes of the text from `at` on, at most a block, into their destination.
    #[inline(never)]
    fn gather(&self, at: usize, len: usize) {
        let (mut from, mut done) = (at, 0);
        for (src, src_len) in self.parts {
            let count = src_len.saturating_sub(from).min(len - done);
            let dst = self.dst.wrapping_add(at + done);
            // SAFETY: `from + count` is at most the part's length, `at + done + count` at most the destination's; when a seam is
            // in the text, it is sealed out of place, so that the two are disjoint.
            unsafe { ptr::copy_nonoverlapping(src.wrapping_add(from), dst, count) };
            done += count;
            from = (from + count).saturating_sub(src_len);
        }
        // SAFETY: inside the destination, as `at + len` is at most its length.
        unsafe { ptr::write_bytes(self.dst.wrapping_add(at + done), 0, len - done) };
    }

    /// Writes the tag behind the ciphertext.
    #[inline(always)]
    pub(super) fn put_tag(&self, [low, high]: [u64; 2]) {
        let tag = u128::from(high) << 64 | u128::from(low);
        // SAFETY: `to_seal` and `to_seal_in_place` have made sure of 16 bytes behind `len`.
        unsafe { self.dst.wrapping_add(self.len).cast::<[u8; 16]>().write(tag.to_le_bytes()) };
    }

    /// Tells whether the tag behind the ciphertext is this one. All of it is compared before anything is decided.
    #[inline(always)]
    pub(super) fn has_tag(&self, [low, high]: [u64; 2]) -> bool {
        let tag = self.parts[0].0.wrapping_add(self.len).cast::<[u8; 16]>();
        // SAFETY: `to_open` and `to_open_in_place` have made sure of 16 bytes behind `len`; they are never written to.
        let tag = u128::from_le_bytes(unsafe { tag.read() });
        (tag ^ (u128::from(high) << 64 | u128::from(low))) == 0
    }
}

fn in_place(src: *const u8, len: usize) -> [(*const u8, usize); 2] {
    [(src, len), (ptr::dangling(), 0)]
}

/// A row of the table: one word for each lane, and room to overrun.
pub(super) type Row<T> = [T; LANES_MAX + PIECE];

/// The blocks of a pass.
///
/// For every lane below the next multiple of [`Kernel::STEP`] from `used` on: the bytes of `src` that `mask` names may be read, and those
/// of `dst` may be written.
#[repr(C, align(64))]
pub(in crate::crypto) struct Lanes {
    /// RFC 8439 §2.3: word 12.
    pub(super) block: Row<u32>,
    /// Words 14 and 15; word 13 is zero.
    pub(super) nonce: [Row<u32>; 2],
    /// Words 4 to 11, written only if the batch has several keys.
    pub(super) key: [Row<u32>; 8],
    pub(super) src: Row<*const u8>,
    pub(super) dst: Row<*mut u8>,
    /// One bit for each byte of the block; zero for a key block and an idle lane.
    pub(super) mask: Row<u64>,
    pub(super) used: usize,
    /// Whether every mask is all ones.
    pub(super) is_whole: bool,
    /// So many lanes from the first on are one-time keys.
    pub(super) key_blocks: usize,
    /// The first of them is this packet's.
    pub(super) first_key: usize,
}

impl Lanes {
    pub(super) const EMPTY: Self = Self {
        block: [0; LANES_MAX + PIECE],
        nonce: [[0; LANES_MAX + PIECE]; 2],
        key: [[0; LANES_MAX + PIECE]; 8],
        src: [ptr::null(); LANES_MAX + PIECE],
        dst: [ptr::null_mut(); LANES_MAX + PIECE],
        mask: [0; LANES_MAX + PIECE],
        used: 0,
        is_whole: false,
        key_blocks: 0,
        first_key: 0,
    };

    /// Takes the next blocks of the flattened batch. In the end none is `used`.
    ///
    /// A masked access to an address that is not mapped costs some 150 ns even if the mask is zero: idle lanes point to `idle`.
    #[inline(always)]
    pub(super) fn fill<K: Kernel>(
        &mut self,
        packets: &[Packet<'_>],
        cursor: &mut Cursor,
        order: Order,
        idle: &Idle,
    ) {
        self.used = 0;
        self.is_whole = true;
        self.first_key = cursor.keys;
        self.key_blocks = (packets.len() - cursor.keys).min(K::LANES);
        for packet in &packets[cursor.keys..cursor.keys + self.key_blocks] {
            let at = self.used;
            self.put(packet, at, 0, order);
            self.put_idle(at, idle);
            self.used += 1;
        }
        cursor.keys += self.key_blocks;
        let is_open = self.key_blocks == 0 || !order.keys_alone;
        while is_open && self.used < K::LANES {
            let Some(packet) = packets.get(cursor.packet) else { break };
            let (src, len) = packet.stretch(cursor.at);
            let len = len.min((K::LANES - self.used) * BLOCK_LEN);
            self.put_text(packet, cursor.at, src, len, order);
            cursor.at += len;
            if cursor.at == packet.len {
                *cursor = Cursor { packet: cursor.packet + 1, at: 0, ..*cursor };
            }
        }
        for at in self.used..self.used.next_multiple_of(K::STEP) {
            self.put_idle(at, idle);
        }
    }

    /// Adds the blocks of `len` bytes of text.
    #[inline(always)]
    fn put_text(&mut self, packet: &Packet<'_>, at: usize, src: *const u8, len: usize, order: Order) {
        let first = self.used;
        let blocks = len.div_ceil(BLOCK_LEN);
        let number = at / BLOCK_LEN + 1;
        let dst = packet.dst.wrapping_add(at);
        if blocks <= 2 {
            for block in 0..blocks {
                self.put(packet, first + block, number + block, order);
                self.src[first + block] = src.wrapping_add(BLOCK_LEN * block);
                self.dst[first + block] = dst.wrapping_add(BLOCK_LEN * block);
                self.mask[first + block] = !0;
            }
        } else {
            let [low, high] = halves(packet.counter);
            for block in (0..blocks).step_by(PIECE) {
                let number = word(number + block);
                put(&mut self.block, first + block, |at| number + word(at));
                put(&mut self.nonce[0], first + block, |_| low);
                put(&mut self.nonce[1], first + block, |_| high);
                put(&mut self.src, first + block, |at| src.wrapping_add(BLOCK_LEN * (block + at)));
                put(&mut self.dst, first + block, |at| dst.wrapping_add(BLOCK_LEN * (block + at)));
                put(&mut self.mask, first + block, |_| !0);
                if order.is_mixed {
                    for (row, &word) in self.key.iter_mut().zip(packet.key) {
                        put(row, first + block, |_| word);
                    }
                }
            }
        }
        self.used += blocks;
        if !len.is_multiple_of(BLOCK_LEN) {
            self.mask[self.used - 1] = !0 >> (BLOCK_LEN - len % BLOCK_LEN);
            self.is_whole = false;
        }
    }

    /// Writes the words of one lane.
    #[inline(always)]
    fn put(&mut self, packet: &Packet<'_>, at: usize, number: usize, order: Order) {
        let [low, high] = halves(packet.counter);
        self.block[at] = word(number);
        self.nonce[0][at] = low;
        self.nonce[1][at] = high;
        if order.is_mixed {
            for (row, &word) in self.key.iter_mut().zip(packet.key) {
                row[at] = word;
            }
        }
    }

    #[inline(always)]
    fn put_idle(&mut self, at: usize, idle: &Idle) {
        self.src[at] = idle.0.get().cast();
        self.dst[at] = idle.0.get().cast();
        self.mask[at] = 0;
        self.is_whole = false;
    }
}

#[inline(always)]
fn put<T>(row: &mut Row<T>, at: usize, value: impl Fn(usize) -> T) {
    let piece = row[at..].first_chunk_mut::<PIECE>().expect("a row is longer than its lanes by a piece");
    *piece = array::from_fn(value);
}

/// RFC 8439 §2.3 and [W] §5.4.6: the counter is the nonce, little-endian, behind four zero bytes.
fn halves(counter: u64) -> [u32; 2] {
    [(counter & 0xffff_ffff) as u32, (counter >> 32) as u32]
}

#[expect(clippy::cast_possible_truncation, reason = "no packet of a batch is longer than `Kernel::LONGEST`")]
fn word(number: usize) -> u32 {
    number as u32
}

/// What the fill of a batch depends on.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// Whether there are several keys.
    pub(super) is_mixed: bool,
    /// Whether no text may be overwritten before all one-time keys are known.
    pub(super) keys_alone: bool,
}

/// How far the flattened batch has been taken.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    /// One-time keys.
    keys: usize,
    /// Packets all of whose text was taken.
    pub(super) packet: usize,
    /// Bytes of the next one's.
    at: usize,
}

/// Where lanes without text point.
#[repr(C, align(64))]
pub(super) struct Idle(UnsafeCell<[u8; BLOCK_LEN]>);

impl Idle {
    pub(super) const fn new() -> Self {
        Self(UnsafeCell::new([0; BLOCK_LEN]))
    }
}

/// The one-time keys of a batch: word *w* of packet *p* in `[w][p]`. A pass writes those of all of its lanes.
#[repr(C, align(64))]
pub(in crate::crypto) struct PolyKeys(pub(super) [[u32; BATCH_MAX + LANES_MAX]; 8]);

impl PolyKeys {
    pub(super) const ZERO: Self = Self([[0; BATCH_MAX + LANES_MAX]; 8]);
}

/// Messages that are authenticated together. Lanes behind the last one repeat the first.
pub(in crate::crypto) struct Group {
    /// Each is readable for its length.
    data: [*const u8; GROUP_MAX],
    len: [usize; GROUP_MAX],
    /// Low and high half of the block behind the message: RFC 8439 §2.8's lengths, of no additional data and of the ciphertext.
    pub(super) last: [[u64; GROUP_MAX]; 2],
}

impl Group {
    #[inline(always)]
    pub(super) fn new(packets: &[Packet<'_>], way: Way) -> Self {
        let packet = |at: usize| packets.get(at).unwrap_or(&packets[0]);
        let len = array::from_fn(|at| packet(at).len);
        Self {
            data: array::from_fn(|at| match way {
                Way::Seal => packet(at).dst.cast_const(),
                Way::Open | Way::OpenInPlace => packet(at).parts[0].0,
            }),
            len,
            last: [[0; GROUP_MAX], len.map(|len| len as u64)],
        }
    }

    /// Makes a group of messages with any last blocks, for known answers.
    #[cfg(test)]
    pub(super) fn of_messages(messages: [(&[u8], [u64; 2]); GROUP_MAX]) -> Self {
        Self {
            data: messages.map(|(message, _)| message.as_ptr()),
            len: messages.map(|(message, _)| message.len()),
            last: [messages.map(|(_, [low, _])| low), messages.map(|(_, [_, high])| high)],
        }
    }

    /// Lays the messages out in columns.
    #[inline(always)]
    pub(super) fn columns<const N: usize>(&self) -> Columns<'_, N> {
        let blocks = self.len.map(|len| len.div_ceil(POLY_BLOCK_LEN) + 1);
        let count = blocks[..N].iter().fold(0, |most, &blocks| blocks.max(most)).div_ceil(4);
        let lead: [usize; N] = array::from_fn(|lane| 64 * count - POLY_BLOCK_LEN * blocks[lane]);
        let whole = lead.iter().fold(0, |most, &lead| lead.max(most)).div_ceil(64);
        Columns { group: self, lead, whole: whole..count.saturating_sub(1).max(whole), count }
    }
}

/// Messages of `N` lanes in columns of four blocks. They end together: with their last block, at the end of the last column.
///
/// A block before the beginning is zero and lacks its high bit, and leaves the accumulator, which is zero until then, as it is.
pub(super) struct Columns<'a, const N: usize> {
    group: &'a Group,
    /// Bytes before the beginning.
    lead: [usize; N],
    /// Columns in which every lane has 64 bytes of its message.
    pub(super) whole: Range<usize>,
    pub(super) count: usize,
}

/// What of a column belongs to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// One bit for each byte that is readable.
    pub(super) bytes: u64,
    /// One bit for each block that is not before the beginning.
    pub(super) blocks: u8,
}

impl Window {
    /// Returns the first block that is not before the beginning.
    #[inline(always)]
    pub(super) fn first_block(&self) -> usize {
        self.blocks.trailing_zeros() as usize
    }

    /// Tells whether every block from the first on is readable whole; of a last column, all but the last.
    #[inline(always)]
    pub(super) fn is_of_blocks(&self, is_last: bool) -> bool {
        let end = if is_last { 3 } else { 4 };
        self.bytes.count_ones() as usize
            == POLY_BLOCK_LEN * end.max(self.first_block()) - POLY_BLOCK_LEN * self.first_block()
    }
}

impl<const N: usize> Columns<'_, N> {
    /// Returns where the lane's column begins; outside of the window there is nothing to be read.
    #[inline(always)]
    pub(super) fn address(&self, column: usize, lane: usize) -> *const u8 {
        self.group.data[lane].wrapping_add(64 * column).wrapping_sub(self.lead[lane])
    }

    #[inline(always)]
    pub(super) fn window(&self, column: usize, lane: usize) -> Window {
        let before = self.lead[lane].saturating_sub(64 * column).min(64);
        let behind = (64 * (column + 1)).saturating_sub(self.lead[lane] + self.group.len[lane]).min(64);
        let bytes = if before + behind >= 64 { 0 } else { (!0 << before) & (!0 >> behind) };
        Window { bytes, blocks: 0xf << (before / POLY_BLOCK_LEN) & 0xf }
    }

    /// Returns the window of the column if it is the same in every lane, as it is when all messages are of one length.
    #[inline(always)]
    pub(super) fn common(&self, column: usize) -> Option<Window> {
        let window = self.window(column, 0);
        (1..N).all(|lane| self.window(column, lane) == window).then_some(window)
    }

    #[inline(always)]
    pub(super) fn is_last(&self, column: usize) -> bool {
        column + 1 == self.count
    }
}
