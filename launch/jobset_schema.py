"""The part of the JobSet API that launch/jobset.py writes, as typed models: a field that is not documented is refused.

JobSet: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/, version 0.10 or newer. Job and Pod:
https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/. Types and fields have the names of the API.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

LONGEST = 63  # characters of a name in the DNS


def _type(kind: str, /, **fields: Any) -> type:
    """Returns the type of a mapping that has these fields and no others."""
    return with_config(ConfigDict(extra="forbid", strict=True))(TypedDict(kind, fields))


def _pods_have_names(jobset: dict) -> dict:
    for job in jobset["spec"]["replicatedJobs"]:
        indexes = f"{job['replicas'] - 1}-{job['template']['spec']['completions'] - 1}"
        last = f"{jobset['metadata']['name']}-{job['name']}-{indexes}-abcde"
        if len(last) > LONGEST:
            raise ValueError(f"the name is {len(last) - LONGEST} characters too long for its pods, e.g. {last}")
    return jobset


Count = Annotated[int, Field(ge=1)]
Label = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=LONGEST)]  # of RFC 1035
Subdomain = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]  # of RFC 1123
RuleName = Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
Image = Annotated[str, Field(pattern=r"^\S+$")]
Device = Literal["google.com/tpu", "nvidia.com/gpu"]

FieldSelector = _type("ObjectFieldSelector", fieldPath=str)
Source = _type("EnvVarSource", fieldRef=FieldSelector)
EnvVar = _type("EnvVar", name=str, value=str) | _type("EnvVar", name=str, valueFrom=Source)
Container = _type(
    "Container",
    name=Label,
    image=Image,
    command=Annotated[list[str], Field(min_length=1)],
    env=list[EnvVar],
    resources=_type("ResourceRequirements", limits=dict[Device, Count]),
    volumeMounts=list[_type("VolumeMount", name=Label, mountPath=str)],
)
Toleration = _type(
    "Toleration",
    key=str,
    operator=Literal["Equal", "Exists"],
    value=str,
    effect=Literal["NoSchedule", "PreferNoSchedule", "NoExecute"],
)
PodSpec = _type(
    "PodSpec",
    restartPolicy=Literal["Never"],  # the only one beside a podFailurePolicy
    terminationGracePeriodSeconds=Count,
    serviceAccountName=NotRequired[Subdomain],
    securityContext=_type("PodSecurityContext", runAsNonRoot=bool, runAsUser=Count, runAsGroup=Count),
    nodeSelector=dict[str, str],
    tolerations=NotRequired[list[Toleration]],
    containers=Annotated[list[Container], Field(min_length=1)],
    volumes=list[_type("Volume", name=Label, emptyDir=_type("EmptyDirVolumeSource"))],
)
ExitCode = Annotated[int, Field(ge=1, le=255)]
OnExitCodes = _type("OnExitCodes", containerName=Label, operator=Literal["In", "NotIn"], values=list[ExitCode])
OnPodCondition = _type("OnPodCondition", type=str, status=Literal["True", "False", "Unknown"])
PodAction = Literal["FailJob", "FailIndex", "Ignore", "Count"]
PodFailureRule = (  # one of the requirements, never both
    _type("PodFailurePolicyRule", action=PodAction, onExitCodes=OnExitCodes)
    | _type("PodFailurePolicyRule", action=PodAction, onPodConditions=list[OnPodCondition])
)
JobSpec = _type(
    "JobSpec",
    completionMode=Literal["Indexed", "NonIndexed"],
    parallelism=Count,
    completions=Count,
    backoffLimit=Annotated[int, Field(ge=0)],
    podFailurePolicy=_type("PodFailurePolicy", rules=list[PodFailureRule]),
    template=_type("PodTemplateSpec", spec=PodSpec),
)
ReplicatedJob = _type("ReplicatedJob", name=Label, replicas=Count, template=_type("JobTemplateSpec", spec=JobSpec))
FailureRule = _type(
    "FailurePolicyRule",
    name=RuleName,
    action=Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"],
    onJobFailureReasons=list[Literal["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded"]],
    onJobFailureMessagePatterns=NotRequired[list[str]],
)
FailurePolicy = _type(
    "FailurePolicy",
    maxRestarts=Annotated[int, Field(ge=0)],
    restartStrategy=Literal["Recreate", "BlockingRecreate", "InPlaceRestart"],
    rules=list[FailureRule],
)
JobSet = _type(
    "JobSet",
    apiVersion=Literal["jobset.x-k8s.io/v1alpha2"],
    kind=Literal["JobSet"],
    metadata=_type("ObjectMeta", name=Label, annotations=NotRequired[dict[str, str]]),
    spec=_type("JobSetSpec", failurePolicy=FailurePolicy, replicatedJobs=list[ReplicatedJob]),
)
MODEL = TypeAdapter(Annotated[JobSet, AfterValidator(_pods_have_names)])
