//! `GET /metrics` over plain HTTP/1.1, for a scraper on this host or a trusted network.
//! Beside the path of requests; a scrape only reads.
//! INVARIANT: one route, no state, and every connection has a deadline.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapers that are served at the same time.
const MAX_SCRAPERS: usize = 16;
/// The longest a scraper may stay.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves `render`'s text until `stop`.
pub(crate) async fn serve<F>(listener: TcpListener, render: F, stop: CancellationToken)
where
    F: Fn() -> Result<String, std::fmt::Error> + Clone + Send + Sync + 'static,
{
    let scrapers = Arc::new(Semaphore::new(MAX_SCRAPERS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the metrics listener cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&scrapers).try_acquire_owned() else {
            continue;
        };
        let render = render.clone();
        tokio::spawn(async move {
            // A scraper that stays too long or breaks off is its own loss.
            let _ = tokio::time::timeout(PATIENCE, serve_one(stream, render)).await;
            drop(permit);
        });
    }
}

async fn serve_one<F>(stream: TcpStream, render: F) -> Result<(), hyper::Error>
where
    F: Fn() -> Result<String, std::fmt::Error>,
{
    let service = service_fn(|request| {
        let response = respond(&request, &render);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE);
    builder
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond<F>(request: &Request<Incoming>, render: &F) -> Response<Full<Bytes>>
where
    F: Fn() -> Result<String, std::fmt::Error>,
{
    let status = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => match render() {
            Ok(text) => return with(StatusCode::OK, OPENMETRICS, text),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        },
        ("/metrics", _) => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::NOT_FOUND,
    };
    with(status, "text/plain; charset=utf-8", format!("{status}\n"))
}

fn with(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(media_type),
    );
    response
}
