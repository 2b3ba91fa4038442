"""Renders the kustomizations in this folder and checks every object.

No kustomize binary is installable by package name on a plain Debian, so `render` follows the part of kustomize that our
files use (resources, components, namespace, configMapGenerator, JSON 6902 patches) and refuses anything else by name.
Name suffix hashes are left out: they change names and references alike.
"""

import copy
import os
import pathlib
import subprocess
import sys
import tempfile

import jsonpatch
import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).parent
KUSTOMIZE = HERE / "kustomize"
# The oldest release that is still patched at the time of writing, and the newest that the checker knows.
KUBERNETES_VERSIONS = ("1.34", "1.37")
UNDERSTOOD = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches"}


class Finding(Exception):
    """Something wrong in a manifest: where, and what."""


def render(folder):
    """Every object of the kustomization in `folder`, in order, as plain dictionaries."""
    kustomization = read_one(folder / "kustomization.yaml")
    unknown = set(kustomization) - UNDERSTOOD
    if unknown:
        raise Finding(f"{folder}/kustomization.yaml: {sorted(unknown)} is not understood by deploy/manifests.py")
    objects = []
    for entry in kustomization.get("resources", []):
        path = (folder / entry).resolve()
        if not path.exists():
            raise Finding(f"{folder}/kustomization.yaml: resource {entry} does not exist")
        objects += render(path) if path.is_dir() else read_all(path)
    for generator in kustomization.get("configMapGenerator", []):
        generate(folder, generator, objects)
    apply_patches(folder, kustomization, objects)
    for entry in kustomization.get("components", []):
        component = (folder / entry).resolve()
        apply_patches(component, read_one(component / "kustomization.yaml"), objects)
    if "namespace" in kustomization:
        for item in objects:
            item["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def read_all(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document is not None]


def read_one(path):
    documents = read_all(path)
    if len(documents) != 1:
        raise Finding(f"{path}: one document is expected, {len(documents)} found")
    return documents[0]


def generate(folder, generator, objects):
    name = generator["name"]
    data = {pathlib.Path(file).name: (folder / file).read_text(encoding="utf-8") for file in generator["files"]}
    present = [item for item in objects if item["kind"] == "ConfigMap" and item["metadata"]["name"] == name]
    if generator.get("behavior", "create") == "replace":
        if not present:
            raise Finding(f"{folder}/kustomization.yaml: no ConfigMap {name} to replace")
        present[0]["data"] = data
    elif present:
        raise Finding(f"{folder}/kustomization.yaml: ConfigMap {name} exists already; say `behavior: replace`")
    else:
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})


def apply_patches(folder, kustomization, objects):
    for entry in kustomization.get("patches", []):
        target = entry["target"]
        operations = read_one(folder / entry["path"]) if "path" in entry else yaml.safe_load(entry["patch"])
        hit = False
        for index, item in enumerate(objects):
            if item["kind"] == target["kind"] and item["metadata"]["name"] == target["name"]:
                try:
                    objects[index] = jsonpatch.apply_patch(item, operations)
                except jsonpatch.JsonPatchException as error:
                    raise Finding(f"{folder}: patch of {target['kind']} {target['name']}: {error}") from error
                hit = True
        if not hit:
            raise Finding(f"{folder}: patch finds no {target['kind']} {target['name']}")


def check(objects):
    """Raises the first finding among `objects`, which are what one `kubectl apply -k` would send."""
    for item in objects:
        for version in KUBERNETES_VERSIONS:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(step) for step in error.path) or "top level"
                raise Finding(f"{label(item)}: {where}: {error.message} (Kubernetes {version})") from error
    configs = {item["metadata"]["name"]: item["data"] for item in objects if item["kind"] == "ConfigMap"}
    for daemonset in (item for item in objects if item["kind"] == "DaemonSet"):
        check_daemonset(daemonset, configs)
        for service in (item for item in objects if item["kind"] == "Service"):
            check_service(service, daemonset)


def check_daemonset(daemonset, configs):
    """What no schema says: references resolve, and the pod agrees with the tollgate.yaml that it mounts."""
    where = label(daemonset)
    pod = daemonset["spec"]["template"]["spec"]
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    require(daemonset["spec"]["selector"]["matchLabels"].items() <= labels.items(), where, "selector misses its pods")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for name, volume in volumes.items():
        config = volume.get("configMap", {}).get("name")
        require(config is None or config in configs, where, f"volume {name}: no ConfigMap {config}")
    for container in pod.get("initContainers", []) + pod["containers"]:
        for mount in container.get("volumeMounts", []):
            require(mount["name"] in volumes, where, f"{container['name']}: no volume {mount['name']} to mount")
        check_hardening(container, f"{where}: {container['name']}")
    config = yaml.safe_load(configs["tollgate-config"]["tollgate.yaml"])
    proxy = pod["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = proxy[probe]["httpGet"]
        require(f"{get['host']}:{get['port']}" == config["health"]["address"], where, f"{probe} asks {get}")
    port = int(config["metrics"]["address"].rpartition(":")[2])
    require(port in [entry["containerPort"] for entry in proxy["ports"]], where, f"metrics port {port} is not declared")
    check_maps(config, proxy, volumes, pod["securityContext"], where)
    grace, drain = pod["terminationGracePeriodSeconds"], int(config["drain_timeout"].removesuffix("s"))
    require(grace == drain + 10, where, f"terminationGracePeriodSeconds {grace} does not fit drain_timeout {drain}s")


def check_maps(config, proxy, volumes, context, where):
    """Whoever looks identities up in the agent's maps can, and nobody else has what that takes."""
    has = "BPF" in proxy["securityContext"]["capabilities"]["add"]
    wants = config["listeners"] == "xds" and config.get("identities", "agent") == "agent"
    require(has == wants, where, "BPF and a configuration that reads an agent's maps belong together")
    if wants:
        host = {name for name, volume in volumes.items() if volume.get("hostPath", {}).get("path") == "/sys/fs/bpf"}
        mounts = [mount for mount in proxy["volumeMounts"] if mount["mountPath"] == "/sys/fs/bpf"]
        followed = any(
            mount["name"] in host and mount.get("mountPropagation") == "HostToContainer" for mount in mounts
        )
        require(followed, where, "/sys/fs/bpf of the host is not mounted, or not with HostToContainer")
        require(context["runAsUser"] == 0, where, "an agent's maps are for root")


def check_hardening(container, where):
    context = container["securityContext"]
    require(context["readOnlyRootFilesystem"] and not context["privileged"], where, "not hardened")
    require(context["capabilities"]["drop"] == ["ALL"], where, "capabilities are not dropped")
    added = context["capabilities"]["add"]
    require(set(added) <= {"NET_RAW", "NET_ADMIN", "BPF"}, where, f"adds {added}")


def check_service(service, daemonset):
    where = label(service)
    template = daemonset["spec"]["template"]
    require(service["spec"]["selector"].items() <= template["metadata"]["labels"].items(), where, "selects no pod")
    ports = {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", [])}
    for port in service["spec"]["ports"]:
        require(port["targetPort"] in ports, where, f"no container port is called {port['targetPort']}")


def require(holds, where, what):
    if not holds:
        raise Finding(f"{where}: {what}")


def label(item):
    return f"{item.get('kind', 'object without kind')}/{item.get('metadata', {}).get('name', '?')}"


# One seeded mistake each: (JSON patch on the rendered DaemonSet, what the finding must say).
SEEDED = (
    ([{"op": "add", "path": "/spec/template/spec/hostNetwrk", "value": True}], "hostNetwrk"),
    ([{"op": "replace", "path": "/spec/template/spec/containers/0/ports/0/hostPort", "value": "9964"}], "integer"),
    ([{"op": "remove", "path": "/spec/selector"}], "selector"),
    ([{"op": "replace", "path": "/spec/template/spec/volumes/0/configMap/name", "value": "gone"}], "no ConfigMap gone"),
    ([{"op": "replace", "path": "/spec/template/spec/terminationGracePeriodSeconds", "value": 1}], "drain_timeout"),
    ([{"op": "replace", "path": "/spec/template/spec/containers/0/readinessProbe/httpGet/port", "value": 1}], "Probe"),
    ([{"op": "add", "path": "/spec/template/spec/containers/0/securityContext/capabilities/add/0", "value": "SYS_ADMIN"}],
     "SYS_ADMIN"),
)

# The same for those that read an agent's maps.
SEEDED_WITH_MAPS = (
    ([{"op": "remove", "path": "/spec/template/spec/containers/0/securityContext/capabilities/add/1"}], "BPF"),
    ([{"op": "remove", "path": "/spec/template/spec/containers/0/volumeMounts/2/mountPropagation"}], "HostToContainer"),
    ([{"op": "replace", "path": "/spec/template/spec/securityContext/runAsUser", "value": 65532}], "root"),
)


def check_the_checker(objects):
    """Every seeded mistake must be found, or this check is worth nothing."""
    index = next(index for index, item in enumerate(objects) if item["kind"] == "DaemonSet")
    proxy = objects[index]["spec"]["template"]["spec"]["containers"][0]
    seeded = SEEDED + (SEEDED_WITH_MAPS if "BPF" in proxy["securityContext"]["capabilities"]["add"] else ())
    for operations, expected in seeded:
        broken = copy.deepcopy(objects)
        broken[index] = jsonpatch.apply_patch(broken[index], operations)
        try:
            check(broken)
        except Finding as finding:
            if expected not in str(finding):
                raise Finding(f"seeded mistake {operations} was found, but as: {finding}") from finding
        else:
            raise Finding(f"seeded mistake {operations} was not found")


def check_configuration(folder):
    """`tollgate run --check` on the folder's tollgate.yaml, when TOLLGATE names the binary; what to say of it."""
    binary, file = os.environ.get("TOLLGATE"), folder / "tollgate.yaml"
    if not file.exists():
        return ""
    if not binary:
        why = "TOLLGATE names no binary; cargo build --release -p tollgate, then TOLLGATE=$PWD/target/release/tollgate deploy/validate"
        if os.environ.get("CI") == "true":
            raise Finding(f"{file}: SKIPPED, which in CI is a failure: {why}")
        return f", tollgate.yaml SKIPPED: {why}"
    with tempfile.TemporaryDirectory() as scratch:
        # The check looks whether directories exist: on this machine they are the ones that the pod's volumes come from.
        text = file.read_text(encoding="utf-8").replace("/etc/tollgate-policies", str(folder / "policies"))
        here = pathlib.Path(scratch, "tollgate.yaml")
        here.write_text(text, encoding="utf-8")
        command = [binary, "run", "--check", "-c", here]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise Finding(f"TOLLGATE={binary}: {error.strerror}; name a tollgate binary by its whole path") from error
    if done.returncode != 0:
        raise Finding(f"{file}: {(done.stderr or done.stdout).strip()}")
    return ", tollgate.yaml accepted"


def main():
    folders = sorted({path.parent for path in KUSTOMIZE.rglob("kustomization.yaml")})
    components = [folder for folder in folders if read_one(folder / "kustomization.yaml")["kind"] == "Component"]
    try:
        for folder in folders:
            if folder in components:
                continue
            objects = render(folder)
            check(objects)
            for component in components:
                patched = copy.deepcopy(objects)
                apply_patches(component, read_one(component / "kustomization.yaml"), patched)
                check(patched)
            check_the_checker(objects)
            print(f"{folder.relative_to(HERE)}: {len(objects)} objects fine{check_configuration(folder)}")
    except Finding as finding:
        sys.exit(f"error: {finding}")


if __name__ == "__main__":
    main()
