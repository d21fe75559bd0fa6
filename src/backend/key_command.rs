//! Key command: the packed form of a command for many keys.
//!
//! A batch sends the same commands for each of its keys. Only the frame of the key differs, so the
//! bytes around it are packed once for the batch. (With a `redis::Cmd` for each command, packing
//! took a fifth of the instructions of a miss.)

/// Bytes of the frame of a key beside the key, rounded up.
const FRAME_OVERHEAD_BYTES: usize = 12;

/// Packed command without its key.
#[derive(Debug)]
pub(super) struct KeyCommand {
    /// Number of arguments, and the name.
    head: Vec<u8>,
    /// Arguments behind the key.
    tail: Vec<u8>,
}

impl KeyCommand {
    /// Packs a command that has the arguments `rest` behind the key.
    pub(super) fn new(name: &str, rest: &[&str]) -> KeyCommand {
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        push_length(b'*', rest.len() + 2, &mut head);
        push_frame(name.as_bytes(), &mut head);
        rest.iter().for_each(|argument| push_frame(argument.as_bytes(), &mut tail));
        KeyCommand { head, tail }
    }

    /// Returns the most bytes that the command takes for a key of this length.
    pub(super) fn max_bytes(&self, key_bytes: usize) -> usize {
        self.head.len() + key_bytes + FRAME_OVERHEAD_BYTES + self.tail.len()
    }

    /// Appends the command for `key`.
    pub(super) fn push(&self, key: &[u8], packed: &mut Vec<u8>) {
        packed.extend_from_slice(&self.head);
        push_frame(key, packed);
        packed.extend_from_slice(&self.tail);
    }
}

/// Appends an argument as a bulk string.
fn push_frame(argument: &[u8], packed: &mut Vec<u8>) {
    push_length(b'$', argument.len(), packed);
    packed.extend_from_slice(argument);
    packed.extend_from_slice(b"\r\n");
}

/// Appends a length as a line that begins with `kind`.
fn push_length(kind: u8, length: usize, packed: &mut Vec<u8>) {
    packed.push(kind);
    packed.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    packed.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MAX_KEY_BYTES;

    /// The packed bytes are those of the crate, for keys of all lengths, and within the bound.
    #[test]
    fn packed_command_equals_that_of_crate() {
        for length in [0, 1, 9, 10, 99, 100, 12_345, MAX_KEY_BYTES] {
            let key = vec![b'\r'; length];
            let mut range = redis::cmd("GETRANGE");
            range.arg(&key).arg(0).arg(usize::MAX);
            for (command, expected) in [
                (KeyCommand::new("PTTL", &[]), redis::cmd("PTTL").arg(&key).get_packed_command()),
                (KeyCommand::new("GETRANGE", &["0", &usize::MAX.to_string()]), range.get_packed_command()),
            ] {
                let mut packed = b"before".to_vec();
                command.push(&key, &mut packed);
                assert_eq!(packed, [b"before", &*expected].concat());
                assert!(expected.len() <= command.max_bytes(length));
            }
        }
    }
}
