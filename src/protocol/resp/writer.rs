//! Replies of the Redis serialization protocol, version 2 and 3. What version 2 has no type for becomes what Redis makes
//! of it: a map is an array of twice the length, a set an array, null an empty bulk string of length -1.

/// The version of the protocol that a client has chosen (`HELLO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RespVersion {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

impl RespVersion {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            RespVersion::Resp2 => "RESP2",
            RespVersion::Resp3 => "RESP3",
        }
    }
}

/// Writes replies in one version. Whoever announces a length writes as many.
pub struct RespWriter<'a> {
    out: &'a mut Vec<u8>,
    version: RespVersion,
}

impl<'a> RespWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>, version: RespVersion) -> RespWriter<'a> {
        RespWriter { out, version }
    }

    /// A type and a number, which is a length or the value itself.
    #[inline]
    fn head(&mut self, kind: u8, number: i64) {
        self.out.push(kind);
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// A line.
    fn line(&mut self, kind: u8, text: &str) {
        self.out.push(kind);
        // A line that holds an end of line would be two: what Redis or a client has sent goes into some.
        self.out.extend(text.bytes().map(|byte| if byte < b' ' { b' ' } else { byte }));
        self.out.extend_from_slice(b"\r\n");
    }

    /// A short text that is no error.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// An error: a code in capitals, a space, and what is the matter.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// A whole number.
    pub fn integer(&mut self, number: i64) {
        self.head(b':', number);
    }

    /// Bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.bulk_head(bytes.len());
        self.out.extend_from_slice(bytes);
        self.bulk_end();
    }

    /// A pair of a map, both texts.
    pub fn pair(&mut self, field: &str, text: &str) {
        self.bulk(field.as_bytes());
        self.bulk(text.as_bytes());
    }

    /// What comes before `length` bytes.
    pub fn bulk_head(&mut self, length: usize) {
        self.head(b'$', length as i64);
    }

    /// What comes behind them.
    pub fn bulk_end(&mut self) {
        self.out.extend_from_slice(b"\r\n");
    }

    /// Bytes that are text.
    pub fn verbatim(&mut self, text: &str) {
        match self.version {
            RespVersion::Resp2 => self.bulk(text.as_bytes()),
            RespVersion::Resp3 => {
                const TEXT: &[u8] = b"txt:";
                self.head(b'=', (TEXT.len() + text.len()) as i64);
                self.out.extend_from_slice(TEXT);
                self.out.extend_from_slice(text.as_bytes());
                self.bulk_end();
            }
        }
    }

    /// The length of an array, whose elements follow.
    pub fn array(&mut self, length: usize) {
        self.head(b'*', length as i64);
    }

    /// The length of a set, whose elements follow.
    pub fn set(&mut self, length: usize) {
        self.head(if self.version == RespVersion::Resp3 { b'~' } else { b'*' }, length as i64);
    }

    /// The number of pairs of a map. They follow, key and value in turns.
    pub fn map(&mut self, pairs: usize) {
        match self.version {
            RespVersion::Resp2 => self.head(b'*', 2 * pairs as i64),
            RespVersion::Resp3 => self.head(b'%', pairs as i64),
        }
    }

    /// Nothing.
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.version == RespVersion::Resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }
}
