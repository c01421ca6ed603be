//! Pods: a sandbox and a container in it, as the kubelet makes them.
//!
//! In: an image, a command. Out: a running container that takes commands. Invariant: the sandbox is in the node's network,
//! so no CNI plugin is needed, unless it has a user namespace of its own: the kubelet gives such a pod a network of its own too. A
//! pod that is not ended goes with its containerd.
//! Not here: images ([`super`]).

use std::path::Path;

use super::{CALL_TIMEOUT, Cri, CriError, failed, proto, request};

/// Grace of a stop; what runs in these pods is killed by it.
const STOP_GRACE_SECS: i64 = 0;
/// Longest a command in a container may take.
const EXEC_TIMEOUT_SECS: i64 = 60;

/// A sandbox with one running container.
#[derive(Clone, Debug)]
pub struct Pod {
    pub sandbox: String,
    pub container: String,
}

/// Who a pod's users are on the node: `length` ids from 0 on, as those from `uid` and `gid` on.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    pub uid: u32,
    pub gid: u32,
    pub length: u32,
}

fn namespaces(users: Option<Users>) -> proto::NamespaceOption {
    let network = match users {
        None => proto::NamespaceMode::Node,
        Some(_) => proto::NamespaceMode::Pod,
    };
    proto::NamespaceOption {
        network: network.into(),
        pid: proto::NamespaceMode::Container.into(),
        ipc: proto::NamespaceMode::Pod.into(),
        userns_options: users.map(|users| {
            let from = |host_id| proto::IdMapping {
                host_id,
                container_id: 0,
                length: users.length,
            };
            proto::UserNamespace {
                mode: proto::NamespaceMode::Pod.into(),
                uids: vec![from(users.uid)],
                gids: vec![from(users.gid)],
            }
        }),
    }
}

fn sandbox(name: &str, logs: &Path, users: Option<Users>) -> proto::PodSandboxConfig {
    proto::PodSandboxConfig {
        metadata: Some(proto::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: String::new(),
        log_directory: logs.to_string_lossy().into_owned(),
        // Otherwise the runtime copies the node's resolv.conf, which need not exist.
        dns_config: Some(proto::DnsConfig {
            servers: vec!["127.0.0.1".into()],
        }),
        linux: Some(proto::LinuxPodSandboxConfig {
            cgroup_parent: String::new(),
            security_context: Some(proto::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(users)),
            }),
        }),
    }
}

impl Cri {
    /// Makes a sandbox and starts `command` of `image` in it. The image must be there.
    pub async fn run_pod(&self, name: &str, image: &str, command: &[&str], logs: &Path) -> Result<Pod, CriError> {
        self.run_pod_as(name, image, command, logs, None).await
    }

    /// The same in a user namespace.
    pub async fn run_pod_as(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
        logs: &Path,
        users: Option<Users>,
    ) -> Result<Pod, CriError> {
        let config = sandbox(name, logs, users);
        let mut runtime = self.runtime.clone();
        let message = proto::RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let answer = runtime.run_pod_sandbox(request(message, CALL_TIMEOUT)).await;
        let sandbox = answer.map_err(failed("run pod sandbox"))?.into_inner().pod_sandbox_id;
        let message = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(proto::ContainerConfig {
                metadata: Some(proto::ContainerMetadata {
                    name: "main".into(),
                    attempt: 0,
                }),
                image: super::spec(image),
                command: command.iter().map(|c| (*c).to_owned()).collect(),
                args: Vec::new(),
                log_path: "main.log".into(),
                linux: Some(proto::LinuxContainerConfig {
                    security_context: Some(proto::LinuxContainerSecurityContext {
                        namespace_options: Some(namespaces(users)),
                    }),
                }),
            }),
            sandbox_config: Some(config),
        };
        let answer = runtime.create_container(request(message, CALL_TIMEOUT)).await;
        let container = answer.map_err(failed("create container"))?.into_inner().container_id;
        let message = proto::StartContainerRequest {
            container_id: container.clone(),
        };
        let answer = runtime.start_container(request(message, CALL_TIMEOUT)).await;
        answer.map_err(failed("start container"))?;
        Ok(Pod { sandbox, container })
    }

    /// Runs a command in the pod's container; what it printed, and its exit code.
    pub async fn exec(&self, pod: &Pod, command: &[&str]) -> Result<(String, i32), CriError> {
        let message = proto::ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: command.iter().map(|c| (*c).to_owned()).collect(),
            timeout: EXEC_TIMEOUT_SECS,
        };
        let answer = self.runtime.clone().exec_sync(request(message, CALL_TIMEOUT * 4)).await;
        let answer = answer.map_err(failed("exec"))?.into_inner();
        let text = String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
        Ok((text, answer.exit_code))
    }

    /// Stops and removes the container, then the sandbox.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<(), CriError> {
        let mut runtime = self.runtime.clone();
        let container_id = pod.container.clone();
        let message = proto::StopContainerRequest {
            container_id: container_id.clone(),
            timeout: STOP_GRACE_SECS,
        };
        let answer = runtime.stop_container(request(message, CALL_TIMEOUT)).await;
        answer.map_err(failed("stop container"))?;
        let message = proto::RemoveContainerRequest { container_id };
        let answer = runtime.remove_container(request(message, CALL_TIMEOUT)).await;
        answer.map_err(failed("remove container"))?;
        let pod_sandbox_id = pod.sandbox.clone();
        let message = proto::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        let answer = runtime.stop_pod_sandbox(request(message, CALL_TIMEOUT)).await;
        answer.map_err(failed("stop pod sandbox"))?;
        let message = proto::RemovePodSandboxRequest { pod_sandbox_id };
        let answer = runtime.remove_pod_sandbox(request(message, CALL_TIMEOUT)).await;
        answer.map(|_| ()).map_err(failed("remove pod sandbox"))
    }
}
