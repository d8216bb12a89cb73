//! A small HTTP/1.1 server: on a thread of its own, one request a connection.
//!
//! Whoever asks can have little of it: so many connections at a time, of which the oldest makes room for the next; seconds until each is
//! over, whatever the client does; a bounded head and no body. Answers that may wait for a data plane are made beside the connections, a
//! few at a time, so that they delay no other: whether the agent lives can be asked however many want to know how it does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;

use crate::sys::thread;

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 32;

/// The most answers that are made at a time.
const ANSWERS_MAX: usize = 4;

/// How long a connection may last.
const LIFE: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// The wait when no descriptor is left for a connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What a path is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Returns the answer to a check: `ok`, or 503 with what is wrong.
    pub fn of_check(wrong: Option<String>) -> Self {
        let (status, text) = match wrong {
            None => (200, "ok".to_owned()),
            Some(wrong) => (503, wrong),
        };
        Self { status, content_type: "text/plain; charset=utf-8", body: text + "\n" }
    }
}

/// How a path is answered.
pub enum Reply {
    /// At once.
    Now(Answer),
    /// By what may wait.
    Later(Box<dyn FnOnce() -> Answer + Send>),
}

/// Who answers: `None` for a path that is not there. It does not wait.
pub type Answers = Arc<dyn Fn(&str) -> Option<Reply> + Send + Sync>;

/// Reads `ADDRESS:PORT`, or `:PORT` for all addresses: the places to try, the first that can be had is used.
///
/// # Errors
/// Says what is needed.
pub fn places(text: &str) -> Result<Vec<SocketAddr>, &'static str> {
    const RULE: &str = "ADDRESS:PORT or :PORT is needed, as 127.0.0.1:9586";
    match text.strip_prefix(':') {
        Some(port) if port.bytes().all(|digit| digit.is_ascii_digit()) => {
            let port = port.parse().map_err(|_| RULE)?;
            // The first takes IPv4 as well, and is not there in a kernel without IPv6.
            let all: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
            Ok(all.map(|addr| SocketAddr::new(addr, port)).to_vec())
        }
        Some(_) => Err(RULE),
        None => text.parse().map(|place| vec![place]).map_err(|_| RULE),
    }
}

/// A running server. Dropping it ends all connections.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at the first of `places` that can be had, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Why the last of them cannot be had; if no thread or descriptor is left.
    pub fn start(places: &[SocketAddr], answers: Answers) -> io::Result<Self> {
        let listener = TcpListener::bind(places)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    never = serve(listener, answers) => match never {},
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: tokio::net::TcpListener, answers: Answers) -> Infallible {
    let room = Arc::new(Semaphore::new(ANSWERS_MAX));
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(EXHAUSTED).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() == CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let connection = serve_one(stream, Arc::clone(&answers), Arc::clone(&room));
        connections.push_back(tokio::spawn(connection).abort_handle());
    }
}

async fn serve_one(stream: TcpStream, answers: Answers, room: Arc<Semaphore>) {
    let service = service_fn(move |request| respond(request, Arc::clone(&answers), Arc::clone(&room)));
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(LIFE)
        .serve_connection(TokioIo::new(stream), service);
    // A client that has gone, or speaks something else, is nothing to report.
    let _ = tokio::time::timeout(LIFE, connection).await;
}

async fn respond(
    request: Request<Incoming>,
    answers: Answers,
    room: Arc<Semaphore>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let make = match answers(request.uri().path()) {
        Some(Reply::Now(answer)) => return Ok(whole(answer)),
        Some(Reply::Later(make)) => make,
        None => return Ok(plain(StatusCode::NOT_FOUND)),
    };
    let Ok(permit) = room.try_acquire_owned() else { return Ok(plain(StatusCode::SERVICE_UNAVAILABLE)) };
    let (made, answer) = oneshot::channel();
    // Who waits for a data plane is not waited for at the end. `spawn_blocking` would panic where no thread can be had.
    let thread = thread::spawn("answer", move || {
        let answer = make();
        drop(permit);
        // A client may have gone.
        let _ = made.send(answer);
    });
    if let Err(error) = thread {
        tracing::debug!(%error, "an answer cannot be made");
        return Ok(plain(StatusCode::SERVICE_UNAVAILABLE));
    }
    // A panic has been printed already.
    Ok(answer.await.map_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR), whole))
}

fn whole(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response
}

/// Returns a response whose body is the reason.
fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{status}\n")));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::sys::with_faults;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn server() -> (Server, SocketAddr) {
        // A port that is free at the moment, and was not used just now.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answers: Answers = Arc::new(|path| match path {
            "/here" => Some(Reply::Now(Answer::of_check(None))),
            "/waits" => Some(Reply::Later(Box::new(|| {
                std::thread::park_timeout(PATIENCE);
                Answer::of_check(None)
            }))),
            _ => None,
        });
        (Server::start(&[port], answers).unwrap(), port)
    }

    fn ask(place: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(place).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_path_is_answered_and_the_connection_ends() {
        let (_server, place) = server();
        let text = ask(place, "GET /here?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nok\n"), "{text}");
        assert!(text.contains("content-type: text/plain; charset=utf-8\r\n"), "{text}");
        assert!(ask(place, "HEAD /here HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("\r\n\r\n"));
        assert!(ask(place, "GET /there HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let text = ask(place, "POST /here HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 405 ") && text.contains("allow: GET, HEAD\r\n"), "{text}");
        assert!(ask(place, "what is this\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn clients_that_say_nothing_keep_nobody_out() {
        let (_server, place) = server();
        let mut silent: Vec<_> =
            (0..3 * CONNECTIONS_MAX).map(|_| TcpStream::connect(place).unwrap()).collect();
        silent.iter_mut().for_each(|stream| stream.write_all(b"GET /he").unwrap());
        assert!(ask(place, "GET /here HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200 "));
        let mut first = silent.swap_remove(0);
        // The oldest have made room: their connections are over, long before their time.
        first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        match first.read(&mut [0]) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    #[test]
    fn answers_that_wait_keep_nobody_from_one_that_does_not() {
        let (_server, place) = server();
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut waiting: Vec<_> = (0..ANSWERS_MAX).map(|_| TcpStream::connect(place).unwrap()).collect();
        waiting.iter_mut().for_each(|stream| stream.write_all(request("/waits").as_bytes()).unwrap());
        // One too many is told so: the others have been heard.
        assert!(ask(place, &request("/waits")).starts_with("HTTP/1.1 503 "));
        assert!(ask(place, &request("/here")).starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn an_answer_that_no_thread_can_be_had_for_is_refused_and_ends_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answers: Answers = Arc::new(|path| match path {
            "/here" => Some(Reply::Now(Answer::of_check(None))),
            _ => Some(Reply::Later(Box::new(|| Answer::of_check(None)))),
        });
        let heads = async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let place = listener.local_addr()?;
            let server = tokio::spawn(serve(listener, answers));
            let mut heads = Vec::new();
            for path in ["/waits", "/here", "/waits"] {
                let mut stream = tokio::net::TcpStream::connect(place).await?;
                stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await?;
                heads.push(text["HTTP/1.1 ".len()..][..3].to_owned());
            }
            server.abort();
            io::Result::Ok(heads)
        };
        let (heads, _) = with_faults("Thread=11*1", || runtime.block_on(heads));
        assert_eq!(heads.unwrap(), ["503", "200", "200"]);
    }

    #[test]
    fn a_port_alone_stands_for_all_addresses() {
        let places =
            |text| places(text).map(|places| places.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(places(":9586").unwrap(), ["[::]:9586", "0.0.0.0:9586"]);
        assert_eq!(places("[::1]:1").unwrap(), ["[::1]:1"]);
        for text in ["", ":", "9586", ":65536", ":+1", "localhost:1", "127.0.0.1"] {
            assert!(places(text).is_err(), "{text}");
        }
    }
}
