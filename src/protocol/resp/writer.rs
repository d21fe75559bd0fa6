//! Writer for the data types of RESP2 and RESP3.
//!
//! Types that RESP2 lacks are written as Redis writes them. A map becomes an array of twice the
//! length, a set an array, and null a bulk string of length -1.

/// Protocol version, which a client selects with `HELLO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RespVersion {
    /// Version of a new connection.
    #[default]
    Resp2,
    /// Version after `HELLO 3`.
    Resp3,
}

impl RespVersion {
    /// Returns the usual name of the version.
    pub fn name(self) -> &'static str {
        match self {
            RespVersion::Resp2 => "RESP2",
            RespVersion::Resp3 => "RESP3",
        }
    }
}

/// Writer that appends reply elements in one version.
///
/// After a length, the caller must write that many elements.
pub struct RespWriter<'a> {
    out: &'a mut Vec<u8>,
    version: RespVersion,
}

impl<'a> RespWriter<'a> {
    /// Creates a writer that appends to `out`.
    pub fn new(out: &'a mut Vec<u8>, version: RespVersion) -> RespWriter<'a> {
        RespWriter { out, version }
    }

    /// Appends a type and a number, which is a length or an integer.
    #[inline]
    fn push_header(&mut self, kind: u8, number: i64) {
        self.out.push(kind);
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends a type and one line of text.
    fn push_line(&mut self, kind: u8, text: &str) {
        self.out.push(kind);
        // Text from Redis or a client may contain line ends, which would split the reply.
        self.out.extend(text.bytes().map(|byte| if byte < b' ' { b' ' } else { byte }));
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends a simple string.
    pub fn simple(&mut self, text: &str) {
        self.push_line(b'+', text);
    }

    /// Appends an error: a code in capitals, a space and a message.
    pub fn error(&mut self, text: &str) {
        self.push_line(b'-', text);
    }

    /// Appends an integer.
    pub fn integer(&mut self, number: i64) {
        self.push_header(b':', number);
    }

    /// Appends a bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.bulk_head(bytes.len());
        self.out.extend_from_slice(bytes);
        self.bulk_end();
    }

    /// Appends key and value of a map, both as bulk strings.
    pub fn pair(&mut self, field: &str, text: &str) {
        self.bulk(field.as_bytes());
        self.bulk(text.as_bytes());
    }

    /// Appends the header of a bulk string of `length` bytes. The caller appends the bytes.
    pub fn bulk_head(&mut self, length: usize) {
        self.push_header(b'$', length as i64);
    }

    /// Appends the end of a bulk string.
    pub fn bulk_end(&mut self) {
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends text: a verbatim string in RESP3, a bulk string in RESP2.
    pub fn verbatim(&mut self, text: &str) {
        match self.version {
            RespVersion::Resp2 => self.bulk(text.as_bytes()),
            RespVersion::Resp3 => {
                const TEXT: &[u8] = b"txt:";
                self.push_header(b'=', (TEXT.len() + text.len()) as i64);
                self.out.extend_from_slice(TEXT);
                self.out.extend_from_slice(text.as_bytes());
                self.bulk_end();
            }
        }
    }

    /// Appends the header of an array of `length` elements.
    pub fn array(&mut self, length: usize) {
        self.push_header(b'*', length as i64);
    }

    /// Appends the header of a push message of `length` elements, which RESP2 does not have.
    pub fn push(&mut self, length: usize) {
        self.push_header(b'>', length as i64);
    }

    /// Appends the header of a set of `length` elements.
    pub fn set(&mut self, length: usize) {
        self.push_header(if self.version == RespVersion::Resp3 { b'~' } else { b'*' }, length as i64);
    }

    /// Appends the header of a map of `pairs` pairs. Keys and values follow alternately.
    pub fn map(&mut self, pairs: usize) {
        match self.version {
            RespVersion::Resp2 => self.push_header(b'*', 2 * pairs as i64),
            RespVersion::Resp3 => self.push_header(b'%', pairs as i64),
        }
    }

    /// Appends null.
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.version == RespVersion::Resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }
}
