//! Which containerd it is.

use super::{CALL_LIMIT, Containerd};
use crate::error::Error;

impl Containerd {
    /// Its version, as it says it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn version(&self) -> Result<String, Error> {
        let request = self.request((), CALL_LIMIT);
        let mut client = self.client.version();
        let answer = self
            .answer(
                "ask containerd for its version",
                CALL_LIMIT,
                client.version(request),
            )
            .await?;
        Ok(answer.version)
    }
}
