//! What the runtime wants, from environment variables, [CNI] §2.

use std::fmt;
use std::path::PathBuf;

use super::error::{Code, Error};
use super::version::Version;

/// The longest name of a container, in bytes: it becomes part of a file's name.
const CONTAINER_MAX: usize = 200;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attaches a container.
    Add,
    /// Undoes ADD.
    Del,
    /// Tells whether an attachment is still as ADD left it.
    Check,
    /// Forgets all attachments but those that are named.
    Gc,
    /// Tells whether ADD would work.
    Status,
    /// Tells which versions are supported.
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Returns the word of the specification for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Returns the version in which it came.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_1,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    fn is_about_a_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// An interface of a container: what everything is kept by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container, by the runtime's name.
    pub container: String,
    /// The interface's name inside.
    pub ifname: String,
}

impl Attachment {
    /// Returns the attachment of these names, if they can be such.
    pub fn new(container: &str, ifname: &str) -> Option<Self> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let is_container = container.len() <= CONTAINER_MAX
            && container.starts_with(|first: char| first.is_ascii_alphanumeric())
            && container.bytes().all(is_word);
        // What the kernel takes for an interface's name (`net/core/dev.c`, `dev_valid_name`).
        let is_ifname = (1..=15).contains(&ifname.len())
            && !matches!(ifname, "." | "..")
            && !ifname.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
        (is_container && is_ifname)
            .then(|| Self { container: container.to_owned(), ifname: ifname.to_owned() })
    }
}

/// As it names files: neither part holds a colon.
impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container, self.ifname)
    }
}

/// What the runtime wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    attachment: Option<Attachment>,
    /// The container's network namespace, by a path; `None` if the runtime has none any more.
    pub namespace: Option<PathBuf>,
    /// The pod's namespace and name, where the runtime tells.
    pub pod: Option<(String, String)>,
    /// Where other plugins are.
    pub plugins: Vec<PathBuf>,
}

impl Request {
    /// Reads the variables of the specification.
    ///
    /// # Errors
    /// [`Code::Environment`] names the one that lacks or is invalid.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let invalid = |text: String| Error::new(Code::Environment, text);
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let needed = |name: &str| given(name).ok_or_else(|| invalid(format!("{name} is needed")));
        let word = needed("CNI_COMMAND")?;
        let command = Command::ALL.into_iter().find(|command| command.name() == word);
        let command = command.ok_or_else(|| invalid(format!("CNI_COMMAND is unknown: {word}")))?;
        let attachment = if command.is_about_a_container() {
            let (container, ifname) = (needed("CNI_CONTAINERID")?, needed("CNI_IFNAME")?);
            let attachment = Attachment::new(&container, &ifname);
            Some(attachment.ok_or_else(|| {
                invalid(format!("CNI_CONTAINERID {container:?} or CNI_IFNAME {ifname:?} is invalid"))
            })?)
        } else {
            None
        };
        let namespace = match command {
            Command::Add | Command::Check => Some(needed("CNI_NETNS")?),
            Command::Del | Command::Gc | Command::Status | Command::Version => given("CNI_NETNS"),
        };
        let arguments = given("CNI_ARGS").unwrap_or_default();
        let argument = |name: &str| {
            let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
        };
        let pod = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
        let plugins = given("CNI_PATH").unwrap_or_default();
        let plugins = plugins.split(':').filter(|place| !place.is_empty()).map(PathBuf::from).collect();
        Ok(Self { command, attachment, namespace: namespace.map(PathBuf::from), pod, plugins })
    }

    /// Returns the attachment that it is about.
    ///
    /// # Errors
    /// [`Code::Environment`] for a command that is about none.
    pub fn attachment(&self) -> Result<&Attachment, Error> {
        self.attachment
            .as_ref()
            .ok_or_else(|| Error::new(Code::Environment, "this command is about no container"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Request, Error> {
        Request::read(|name| {
            variables.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_command_needs_what_it_is_about() {
        let add =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n")];
        let request = read(&add).unwrap();
        assert_eq!(request.attachment().unwrap().to_string(), "a1:eth0");
        for lacking in 0..add.len() {
            let mut less = add.to_vec();
            let (name, _) = less.remove(lacking);
            let error = read(&less).unwrap_err();
            assert_eq!((error.code, error.text), (Code::Environment, format!("{name} is needed")));
        }
        let del =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        assert_eq!(read(&del).unwrap().namespace, None);
        assert!(read(&[("CNI_COMMAND", "STATUS")]).unwrap().attachment().is_err());
        assert!(read(&[("CNI_COMMAND", "UPDATE")]).is_err());
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for (container, ifname) in [
            ("../a", "eth0"),
            ("", "eth0"),
            ("a/b", "eth0"),
            ("a:b", "eth0"),
            ("-a", "eth0"),
            ("a", ""),
            ("a", ".."),
            ("a", "e/0"),
            ("a", "e:0"),
            ("a", "e 0"),
            ("a", "abcdefghijklmnop"),
        ] {
            assert_eq!(Attachment::new(container, ifname), None, "{container:?} {ifname:?}");
        }
        assert!(Attachment::new("A_.-9", "abcdefghijklmno").is_some());
        assert!(Attachment::new(&"a".repeat(201), "eth0").is_none());
    }

    #[test]
    fn the_pod_is_known_by_the_arguments_of_the_runtime() {
        let request = read(&[
            ("CNI_COMMAND", "STATUS"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1=2"),
            ("CNI_PATH", "/opt/cni/bin::/usr/lib/cni"),
        ]);
        let request = request.unwrap();
        assert_eq!(request.pod, Some(("shop".to_owned(), "web-0".to_owned())));
        assert_eq!(request.plugins, ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from));
    }
}
