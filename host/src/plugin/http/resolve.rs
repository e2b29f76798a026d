//! Resolves names and drops addresses that the handler may not reach. The connection
//! uses the checked addresses, so that DNS rebinding does not bypass the check.

use super::address::is_permitted;
use hyper_util::client::legacy::connect::dns::Name;
use ipnet::IpNet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;
use tokio::sync::Semaphore;
use tower_service::Service;

/// Concurrent lookups of one plugin version. The system's resolver can't be
/// interrupted, so a lookup that hangs blocks its thread.
const RESOLVES_MAX: usize = 8;

#[derive(Clone)]
pub(super) struct Resolver {
    networks: Arc<[IpNet]>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("the name can't be resolved: {0}")]
    Resolve(io::Error),
    #[error("the name resolves to {0}, which is not public")]
    Prohibited(IpAddr),
}

impl Resolver {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        Self { networks: networks.into(), permits: Arc::new(Semaphore::new(RESOLVES_MAX)) }
    }

    async fn resolve(self, name: Name) -> Result<vec::IntoIter<SocketAddr>, ResolveError> {
        let permit =
            self.permits.acquire_owned().await.map_err(|error| ResolveError::Resolve(io::Error::other(error)))?;
        let resolved = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            (name.as_str(), 0).to_socket_addrs().map(Vec::from_iter)
        });
        let found = resolved.await.map_err(io::Error::other).flatten().map_err(ResolveError::Resolve)?;
        permitted(found, &self.networks).map(Vec::into_iter)
    }
}

/// The permitted addresses; an error if there is none.
fn permitted(mut found: Vec<SocketAddr>, networks: &[IpNet]) -> Result<Vec<SocketAddr>, ResolveError> {
    let Some(first) = found.first().map(SocketAddr::ip) else {
        return Err(ResolveError::Resolve(io::Error::other("it has no address")));
    };
    found.retain(|address| is_permitted(address.ip(), networks));
    if found.is_empty() { Err(ResolveError::Prohibited(first)) } else { Ok(found) }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_permitted_addresses_remain() {
        let found = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = found(&["127.0.0.1:0", "1.1.1.1:0", "[::1]:0", "10.0.0.1:0"]);
        assert_eq!(permitted(mixed.clone(), &[]).unwrap(), found(&["1.1.1.1:0"]));
        let networks = ["10.0.0.0/8".parse().unwrap()];
        assert_eq!(permitted(mixed, &networks).unwrap(), found(&["1.1.1.1:0", "10.0.0.1:0"]));
        let error = permitted(found(&["169.254.169.254:0"]), &[]).unwrap_err().to_string();
        assert_eq!(error, "the name resolves to 169.254.169.254, which is not public");
        assert!(matches!(permitted(Vec::new(), &[]), Err(ResolveError::Resolve(_))));
    }
}
