//! Authentication of requests: decides which HTTP requests need credentials, and checks those of
//! both protocols.

use super::Connection;
use crate::client_auth::{Carrier, ClientAuth, Credentials, Peer, Verdict};
use crate::metrics::{AuthFailure, Protocol, Recorder};
use crate::protocol::http::{
    AdminEndpoint, Authorization, Head, HttpOperation, HttpRefusal, MAX_DECODED_BYTES, Status,
};

/// Refusal of a request without valid credentials.
const UNAUTHORIZED: HttpRefusal = HttpRefusal {
    status: Status::Unauthorized,
    message: "authentication required; send a valid password (Authorization: Bearer or Basic, see CLIENT_PASSWORD)",
};

/// Refusal of credentials that are not checked.
const TOO_MANY_FAILURES: HttpRefusal = HttpRefusal {
    status: Status::TooManyRequests,
    message: "too many failed authentications from this address; retry in a second",
};

impl Connection {
    /// Turns a request into a refusal, unless its credentials are valid or it needs none. Decides
    /// by the operation, which runs afterwards, and not by the text of the request.
    pub(super) fn authorize(&mut self, head: &mut Head<'_>, auth: &mut ClientAuth, recorder: &mut Recorder) {
        if matches!(head.operation, HttpOperation::Admin(AdminEndpoint::Healthz | AdminEndpoint::Readyz)) {
            return;
        }
        // A client without credentials has not guessed any: browsers first ask like this.
        let verdict = match head.authorization {
            Authorization::Absent => None,
            sent => Some(auth.verify(&mut self.peer, Carrier::Http, sent.credentials(&mut [0; MAX_DECODED_BYTES]))),
        };
        let (refusal, failure) = match verdict {
            Some(Verdict::Accepted) => {
                head.format.is_private = true;
                return;
            }
            Some(Verdict::Wrong) => (UNAUTHORIZED, Some(AuthFailure::Wrong)),
            Some(Verdict::Throttled) => (TOO_MANY_FAILURES, Some(AuthFailure::Throttled)),
            None => (UNAUTHORIZED, None),
        };
        if let Some(failure) = failure {
            recorder.record_auth_failure(Protocol::Http, failure);
        }
        head.operation = HttpOperation::Refuse(refusal);
    }
}

/// Checks the credentials of a RESP command, and stores why they are refused.
pub(super) fn verify_resp(
    auth: &mut ClientAuth,
    peer: &mut Peer,
    user: &[u8],
    password: &[u8],
    failure: &mut Option<AuthFailure>,
) -> Verdict {
    let verdict = auth.verify(peer, Carrier::Resp, Some(Credentials { user, password }));
    *failure = match verdict {
        Verdict::Accepted => None,
        Verdict::Wrong => Some(AuthFailure::Wrong),
        Verdict::Throttled => Some(AuthFailure::Throttled),
    };
    verdict
}
