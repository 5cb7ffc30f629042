//! Reading and writing little-endian fields with bounds checked.

use std::fmt;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// The bytes end before the structure does.
    TooShort,
    /// Bytes are left behind the structure.
    TooLong,
    /// The magic number differs.
    Magic,
    /// The structure was written by a newer version, which is named.
    NewerVersion(u32),
    /// A reserved byte is not zero.
    Reserved,
    /// A field has a value outside of its range; the field is named.
    Field(&'static str),
    /// The checksum or seal does not hold.
    Checksum,
}

impl fmt::Display for FormatError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => formatter.write_str("the structure is cut short"),
            Self::TooLong => formatter.write_str("bytes follow the structure"),
            Self::Magic => formatter.write_str("the magic number is wrong"),
            Self::NewerVersion(version) => write!(formatter, "format version {version} is newer than this program"),
            Self::Reserved => formatter.write_str("a reserved byte is not zero"),
            Self::Field(name) => write!(formatter, "the field \"{name}\" is out of range"),
            Self::Checksum => formatter.write_str("the checksum does not match"),
        }
    }
}

impl std::error::Error for FormatError {}

/// Takes fields off the front of a slice.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] if fewer are left.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(FormatError::TooShort)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] if fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(FormatError::TooShort)?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] at the end.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] at the end.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] at the end.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] at the end.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of 1 to 10 bytes: 7 bits in each, the lowest first; the highest bit says that more follow.
    ///
    /// # Errors
    /// [`FormatError::TooShort`] at the end, [`FormatError::Field`] if it has more bytes than it needs, or is above 2^64.
    pub fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || byte == 0 && shift > 0 {
                return Err(FormatError::Field("number of several bytes"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FormatError::Field("number of several bytes"))
    }

    /// `count` bytes that must be zero.
    ///
    /// # Errors
    /// [`FormatError::Reserved`] if one is not.
    pub fn reserved(&mut self, count: usize) -> Result<(), FormatError> {
        if self.bytes(count)?.iter().any(|byte| *byte != 0) {
            return Err(FormatError::Reserved);
        }
        Ok(())
    }

    /// Text behind its length (u16).
    ///
    /// # Errors
    /// [`FormatError::TooShort`], or [`FormatError::Field`] with `name` if it is not UTF-8.
    pub fn text(&mut self, name: &'static str) -> Result<String, FormatError> {
        let len = usize::from(self.u16()?);
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FormatError::Field(name))
    }

    /// Items behind their count (u16).
    ///
    /// # Errors
    /// [`FormatError::TooShort`], or those of `read`.
    pub fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        (0..self.u16()?).map(|_| read(self)).collect()
    }

    /// Bytes left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`FormatError::TooLong`] if something is.
    pub const fn finish(&self) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::TooLong) }
    }
}

/// Appends fields to a vector.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Goes on behind what `bytes` holds.
    #[must_use]
    pub const fn onto(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Appends raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Appends a number in as many bytes as it needs, as [`Reader::varint`] reads it.
    pub fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.u8(low & 0x7f);
            }
            self.u8(low | 0x80);
        }
    }

    /// Appends text behind its length (u16).
    ///
    /// # Panics
    /// As [`len_u16`].
    pub fn text(&mut self, text: &str) {
        self.u16(len_u16(text.len()));
        self.bytes(text.as_bytes());
    }

    /// Appends items behind their count (u16).
    ///
    /// # Panics
    /// As [`len_u16`].
    pub fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u16(len_u16(items.len()));
        for item in items {
            write(self, item);
        }
    }

    /// Appends `count` zeros.
    pub fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// Appends zeros up to the length `len`.
    ///
    /// # Panics
    /// If there is more already.
    pub fn pad_to(&mut self, len: usize) {
        assert!(self.bytes.len() <= len, "the structure is larger than its place");
        self.bytes.resize(len, 0);
    }

    /// Bytes so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A length that is known to be below 2^16.
///
/// # Panics
/// If it is not: the callers' named limits are far below.
#[must_use]
pub fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("a named limit keeps this length below 2^16")
}

/// A length that is known to be below 2^32.
///
/// # Panics
/// If it is not: the callers' named limits are far below.
#[must_use]
pub fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a named limit keeps this length below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_bytes_that_they_need() {
        for (value, len) in [(0, 1), (127, 1), (128, 2), (1 << 35, 6), (u64::MAX >> 1, 9), (u64::MAX, 10)] {
            let mut writer = Writer::new();
            writer.varint(value);
            assert_eq!(writer.len(), len, "{value}");
            assert_eq!(Reader::new(writer.as_slice()).varint(), Ok(value));
        }
    }

    #[test]
    fn numbers_with_bytes_too_many_are_refused() {
        let too_many = FormatError::Field("number of several bytes");
        assert_eq!(Reader::new(&[0x80, 0]).varint(), Err(too_many));
        assert_eq!(Reader::new(&[0xff; 11]).varint(), Err(too_many));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(FormatError::TooShort));
    }
}
