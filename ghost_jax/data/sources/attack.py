"""MITRE ATT&CK, versions 15.1 to 18.1, any of the three domains, from the publisher's STIX bundle."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources.stix import Bundle, Edge
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, first_sentence, headed, labelled, listing, paragraphs, with_list

VERSION = 3  # raise it when the same file gives other records

LICENSE = "MITRE ATT&CK terms of use"

_PUBLISHERS = ("mitre-attack", "mitre-mobile-attack", "mitre-ics-attack")
# Type of an actor -> type of what it uses -> the relation of the two
_USES = {
    "intrusion-set": {"attack-pattern": "group_technique", "malware": "group_software", "tool": "group_software"},
    "malware": {"attack-pattern": "software_technique"},
    "tool": {"attack-pattern": "software_technique"},
    "campaign": {"attack-pattern": "campaign_technique"},
}
# Entries for techniques against which there is no measure, or no particular one
_NO_MEASURE = ("Do Not Mitigate", "Mitigation Limited or Not Effective", "Pre-compromise")
_TECHNIQUE_FIELDS = {
    "Platforms": "x_mitre_platforms",
    "Permissions required": "x_mitre_permissions_required",
    "System requirements": "x_mitre_system_requirements",
    "Defenses bypassed": "x_mitre_defense_bypassed",
    "Impact": "x_mitre_impact_type",
}


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each technique, group, software, campaign, mitigation, tactic and data source in force.

    Techniques state facts of the relations "tactic", "mitigation" and "detection"; groups, software and campaigns
    state what they use. Raises UserError where no tactic of the bundle names its domain.
    """
    bundle = Bundle(path, _PUBLISHERS)
    domain = _domain(bundle)
    tactics = {tactic["x_mitre_shortname"]: tactic["name"] for tactic in bundle.of_type("x-mitre-tactic")}
    for thing in bundle.objects.values():
        facts: Iterable[Fact] = ()
        if thing["type"] == "attack-pattern":
            served = _tactics_of(thing, tactics)
            text, facts = _technique(bundle, thing, served), _technique_facts(bundle, thing, served)
        elif thing["type"] == "x-mitre-tactic":
            text = _tactic(bundle, thing, tactics)
        elif thing["type"] == "course-of-action":
            mitigated = bundle.outgoing("mitigates", thing, "attack-pattern")
            does = "is listed for" if thing["name"] in _NO_MEASURE else "mitigates"
            text = (_ends(f"{_named(bundle, thing)} {does}", bundle, mitigated),)
        elif thing["type"] == "x-mitre-data-source":
            text = _data_source(bundle, thing)
        elif thing["type"] in _USES:
            text, facts = _actor(bundle, thing), _actor_facts(bundle, thing)
        else:
            continue
        # Where two relationships of one page state the same fact, the first one's evidence stays.
        stated: dict[tuple[str, str], Fact] = {}
        for fact in facts:
            stated.setdefault((fact.relation, fact.object), fact)
        number, url = bundle.reference(thing)
        title = ": ".join([*(edge.other["name"] for edge in _parent_of(bundle, thing)), thing["name"]])
        text = paragraphs(clean(thing.get("description", "")), *text)
        yield Record(f"{domain}/{number}", "attack", title, text, url, LICENSE, tuple(stated.values()))


def _domain(bundle: Bundle) -> str:
    # Groups and software belong to several domains and files may be renamed; a tactic belongs to one domain.
    for tactic in bundle.of_type("x-mitre-tactic"):
        if tactic["x_mitre_domains"]:
            return tactic["x_mitre_domains"][0].removesuffix("-attack")
    raise UserError(
        f"{bundle.path} is a STIX bundle without a tactic (x-mitre-tactic) that names its domain, so it is not ATT&CK. "
        "Give the bundle of a domain, such as enterprise-attack-15.1.json."
    )


def _named(bundle: Bundle, thing: dict) -> str:
    """Returns "Phishing (T1566)", and "C0015" of a campaign without another name."""
    number, _ = bundle.reference(thing)
    return number if thing["name"] == number else f"{thing['name']} ({number})"


def _numbered(bundle: Bundle, thing: dict) -> str:
    """Returns "M1040 Behavior Prevention on Endpoint"."""
    return f"{bundle.reference(thing)[0]} {clean(thing['name'])}"


def _ends(beginning: str, bundle: Bundle, edges: list[Edge]) -> str:
    return with_list(beginning, dict.fromkeys(_named(bundle, edge.other) for edge in edges))


def _values(label: str, thing: dict, key: str) -> str:
    return with_list(f"{label}:", (clean(value).rstrip(".") for value in thing.get(key, [])))


# ---- Techniques and tactics ----


def _tactics_of(technique: dict, tactics: dict[str, str]) -> list[str]:
    shortnames = [phase.get("phase_name") for phase in technique.get("kill_chain_phases", [])]
    return [tactics[shortname] for shortname in shortnames if shortname in tactics]


def _parent_of(bundle: Bundle, technique: dict) -> list[Edge]:
    return bundle.outgoing("subtechnique-of", technique)[:1]


def _tactic(bundle: Bundle, tactic: dict, tactics: dict[str, str]) -> Iterator[str]:
    members = (
        _named(bundle, technique)
        for technique in bundle.of_type("attack-pattern")
        if tactic["name"] in _tactics_of(technique, tactics) and not _parent_of(bundle, technique)
    )
    yield with_list(f"The tactic {_named(bundle, tactic)} holds the techniques", members)


def _technique(bundle: Bundle, technique: dict, tactics: list[str]) -> Iterator[str]:
    kind = "a technique"
    for parent in _parent_of(bundle, technique):
        kind = f"a sub-technique of {_named(bundle, parent.other)}" + ("," if tactics else "")
    served = f" of the {'tactics' if len(tactics) > 1 else 'tactic'} {listing(tactics)}" if tactics else ""
    yield f"{bundle.reference(technique)[0]} is {kind}{served}."
    for label, key in _TECHNIQUE_FIELDS.items():
        yield _values(label, technique, key)
    yield _ends("Its sub-techniques are", bundle, bundle.incoming("subtechnique-of", technique))
    yield _ends("It targets the assets", bundle, bundle.outgoing("targets", technique))
    for edge in bundle.incoming("mitigates", technique, "course-of-action"):
        yield headed(f"Mitigation {_numbered(bundle, edge.other)}", edge.description)
    yield labelled("Detection", clean(technique.get("x_mitre_detection", "")))
    for edge in bundle.incoming("detects", technique, "x-mitre-data-component"):
        source = "".join(f"{_numbered(bundle, source)}: " for source in _source_of(bundle, edge.other))
        yield headed(f"Detection by {source}{edge.other['name']}", edge.description)
    for edge in bundle.incoming("detects", technique, "x-mitre-detection-strategy"):
        yield headed(f"Detection strategy {_numbered(bundle, edge.other)}", edge.description)
    for analytic in _analytics(bundle, technique):
        label = "Analytic" + listing(analytic.get("x_mitre_platforms", []), " for ")
        needs = with_list(" Data components:", _analytic_components(bundle, analytic))
        yield labelled(label, clean(analytic.get("description", "")) + needs)
    for edge in bundle.incoming("uses", technique, *_USES):
        yield labelled(f"Procedure of {_named(bundle, edge.other)}", edge.description)


def _technique_facts(bundle: Bundle, technique: dict, tactics: list[str]) -> Iterator[Fact]:
    subject = _named(bundle, technique)
    for tactic in tactics:
        yield Fact(subject, "tactic", tactic, f"{subject} serves the tactic {tactic}.")
    for edge in bundle.incoming("mitigates", technique, "course-of-action"):
        name = edge.other["name"]
        if name not in _NO_MEASURE:
            evidence = first_sentence(edge.description) or f"{subject} is mitigated by {name}."
            yield Fact(subject, "mitigation", name, evidence)
    detected = f"{subject} is detected with the data component"
    for edge in bundle.incoming("detects", technique, "x-mitre-data-component"):
        name = _component_name(bundle, edge.other)
        yield Fact(subject, "detection", name, first_sentence(edge.description) or f"{detected} {name}.")
    for analytic in _analytics(bundle, technique):
        for name in _analytic_components(bundle, analytic):
            yield Fact(subject, "detection", name, f"{detected} {name}.")


def _component_name(bundle: Bundle, component: dict) -> str:
    """Returns "Process: OS API Execution"; the component's name alone where version 18 dropped the data source."""
    return ": ".join(thing["name"] for thing in (*_source_of(bundle, component), component))


def _source_of(bundle: Bundle, component: dict) -> list[dict]:
    return bundle.present([component.get("x_mitre_data_source_ref", "")])


def _data_source(bundle: Bundle, source: dict) -> Iterator[str]:
    yield _values("Platforms", source, "x_mitre_platforms")
    yield _values("Collection layers", source, "x_mitre_collection_layers")
    for component in bundle.of_type("x-mitre-data-component"):
        if source in _source_of(bundle, component):
            yield headed(f"Data component {component['name']}", clean(component.get("description", "")))
            yield _ends(f"{component['name']} detects", bundle, bundle.outgoing("detects", component, "attack-pattern"))


def _analytics(bundle: Bundle, technique: dict) -> list[dict]:
    strategies = bundle.incoming("detects", technique, "x-mitre-detection-strategy")
    return bundle.present(each for edge in strategies for each in edge.other.get("x_mitre_analytic_refs", []))


def _analytic_components(bundle: Bundle, analytic: dict) -> list[str]:
    sources = analytic.get("x_mitre_log_source_references", [])
    components = bundle.present(source.get("x_mitre_data_component_ref", "") for source in sources)
    return list(dict.fromkeys(_component_name(bundle, component) for component in components))


# ---- Groups, software and campaigns ----


def _actor(bundle: Bundle, actor: dict) -> Iterator[str]:
    """Yields the paragraphs of an actor's page; its procedures are on the techniques' pages."""
    named = _named(bundle, actor)
    aliases = actor.get("aliases", actor.get("x_mitre_aliases", []))
    yield with_list(f"{named} is also known as", (alias for alias in aliases if alias != actor["name"]))
    yield _values("Platforms", actor, "x_mitre_platforms")
    if "first_seen" in actor and "last_seen" in actor:
        yield f"It was active from {actor['first_seen'][:7]} to {actor['last_seen'][:7]}."
    yield _ends(f"{named} is attributed to", bundle, bundle.outgoing("attributed-to", actor))
    yield _ends(f"{named} uses the techniques", bundle, bundle.outgoing("uses", actor, "attack-pattern"))
    yield _ends(f"{named} uses the software", bundle, bundle.outgoing("uses", actor, "malware", "tool"))
    yield _ends(f"{named} is used by", bundle, bundle.incoming("uses", actor, "intrusion-set", "campaign"))


def _actor_facts(bundle: Bundle, actor: dict) -> Iterator[Fact]:
    subject, relations = _named(bundle, actor), _USES[actor["type"]]
    for edge in bundle.outgoing("uses", actor, *relations):
        used = _named(bundle, edge.other)
        evidence = first_sentence(edge.description) or f"{subject} uses {used}."
        yield Fact(subject, relations[edge.other["type"]], used, evidence)
