//! Applies what nodes say of themselves, as their agents do: by a connection that stays. A kubectl for each change would have the processors
//! while what follows from it is timed.

use std::path::Path;
use std::thread::JoinHandle;

use adit::control::api::NodeTunnel;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::others::MANAGER;
use crate::support::Namespace;

pub(crate) struct Applier {
    objects: Option<UnboundedSender<Value>>,
    thread: Option<JoinHandle<()>>,
}

impl Applier {
    pub(crate) fn start(namespace: &Namespace, kubeconfig: &Path) -> Self {
        let kubeconfig = kubeconfig.to_owned();
        let (objects, queue) = unbounded_channel();
        let start = move || std::thread::spawn(move || run(&kubeconfig, queue));
        Self { objects: Some(objects), thread: Some(namespace.enter(start)) }
    }

    /// Has a `NodeTunnel` applied; that is not waited for.
    pub(crate) fn apply(&self, object: Value) {
        let objects = self.objects.as_ref().expect("it has not ended");
        objects.send(object).expect("whoever applies is there");
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.objects = None;
        // A panic has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(kubeconfig: &Path, mut queue: UnboundedReceiver<Value>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let resource = ApiResource::erase::<NodeTunnel>(&());
        let api = Api::<DynamicObject>::all_with(Client::try_from(config).unwrap(), &resource);
        let params = PatchParams::apply(MANAGER).force();
        while let Some(object) = queue.recv().await {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            api.patch(&name, &params, &Patch::Apply(&object)).await.unwrap();
        }
    });
}
