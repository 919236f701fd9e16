"""MITRE ATT&CK, versions 15.1 to 18.1, any of the three domains, from the publisher's STIX bundle."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import stix
from ghost_jax.data.sources.stix import Bundle, Edge
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.data.storage.text_cleaning import clean, first_sentence, labelled, listing, paragraphs

VERSION = 1  # raise it when the same file gives other records

LICENSE = "MITRE ATT&CK terms of use"

_PUBLISHER = ("mitre-attack", "mitre-mobile-attack", "mitre-ics-attack")
# Who acts: the relation of each type to what it uses, by the type of that.
_SOFTWARE_USES = {"attack-pattern": "software_technique"}
_USES = {
    "intrusion-set": {"attack-pattern": "group_technique", "malware": "group_software", "tool": "group_software"},
    "malware": _SOFTWARE_USES,
    "tool": _SOFTWARE_USES,
    "campaign": {"attack-pattern": "campaign_technique"},
}
_TECHNIQUE_FIELDS = {
    "Platforms": "x_mitre_platforms",
    "Permissions required": "x_mitre_permissions_required",
    "System requirements": "x_mitre_system_requirements",
    "Defenses bypassed": "x_mitre_defense_bypassed",
    "Impact": "x_mitre_impact_type",
}


def read(path: Path) -> Iterator[Record]:
    """Yields a record for each technique, group, software, campaign, mitigation and tactic that is in force.

    The page of a technique also tells its mitigations, its detection and the procedures that were seen, and states
    facts of the relations "tactic", "mitigation" and "detection". The page of a group, a piece of software or a
    campaign states what it uses: "group_technique", "group_software", "software_technique", "campaign_technique".

    Raises:
      UserError: the file is not a sound STIX bundle of ATT&CK.
    """
    bundle = stix.load(path)
    domain = _domain(bundle)
    tactics = {tactic["x_mitre_shortname"]: tactic for tactic in bundle.of_type("x-mitre-tactic")}
    for thing in bundle.objects.values():
        facts = ()
        if thing["type"] == "attack-pattern":
            served = _tactics_of(thing, tactics)
            text, facts = _technique(bundle, thing, served), _each_once(_stated(bundle, thing, served))
        elif thing["type"] == "x-mitre-tactic":
            text = _tactic(bundle, thing, tactics)
        elif thing["type"] == "course-of-action":
            text = _mitigation(bundle, thing)
        elif thing["type"] in _USES:
            text, facts = _actor(bundle, thing), _each_once(_uses(bundle, thing))
        else:
            continue
        number, url = stix.reference(thing, _PUBLISHER, path)
        yield Record(f"{domain}/{number}", "attack", _title(bundle, thing), text, url, LICENSE, facts)


def _domain(bundle: Bundle) -> str:
    # Groups and software belong to several domains and files may be renamed, but a tactic is of one domain alone.
    for tactic in bundle.of_type("x-mitre-tactic"):
        if tactic["x_mitre_domains"]:
            return tactic["x_mitre_domains"][0].removesuffix("-attack")
    raise UserError(
        f"{bundle.path} is a STIX bundle without a tactic (x-mitre-tactic) that names its domain, so it is not ATT&CK. "
        "Give the bundle of a whole domain, such as enterprise-attack-15.1.json."
    )


def _title(bundle: Bundle, thing: dict) -> str:
    parents = bundle.outgoing("subtechnique-of", thing)
    return f"{parents[0].other['name']}: {thing['name']}" if parents else thing["name"]


def _named(bundle: Bundle, thing: dict) -> str:
    """Returns "Phishing (T1566)"."""
    return f"{thing['name']} ({stix.reference(thing, _PUBLISHER, bundle.path)[0]})"


def _names(bundle: Bundle, edges: Iterable[Edge]) -> str:
    return listing(dict.fromkeys(_named(bundle, edge.other) for edge in edges))


def _tactics_of(technique: dict, tactics: dict[str, dict]) -> list[str]:
    shortnames = [phase.get("phase_name") for phase in technique.get("kill_chain_phases", [])]
    return [tactics[shortname]["name"] for shortname in shortnames if shortname in tactics]


def _technique(bundle: Bundle, technique: dict, tactics: list[str]) -> str:
    strategies = bundle.incoming("detects", technique, "x-mitre-detection-strategy")
    return paragraphs(
        clean(technique.get("description", "")),
        _kind_sentence(bundle, technique, tactics),
        *(_values(label, technique.get(key, [])) for label, key in _TECHNIQUE_FIELDS.items()),
        _sentence("Its sub-techniques are", bundle, bundle.incoming("subtechnique-of", technique)),
        _sentence("It targets the assets", bundle, bundle.outgoing("targets", technique)),
        *(
            _told(f"Mitigation {_numbered(bundle, edge.other)}", edge)
            for edge in bundle.incoming("mitigates", technique, "course-of-action")
        ),
        labelled("Detection", clean(technique.get("x_mitre_detection", ""))),
        *(
            _told(f"Detection by {_component_name(bundle, edge.other)}", edge)
            for edge in bundle.incoming("detects", technique, "x-mitre-data-component")
        ),
        *(_told(f"Detection strategy {_numbered(bundle, edge.other)}", edge) for edge in strategies),
        *(_analytic(bundle, analytic) for analytic in _analytics(bundle, technique)),
        *(
            labelled(f"Procedure of {_named(bundle, edge.other)}", edge.description)
            for edge in bundle.incoming("uses", technique, *_USES)
        ),
    )


def _each_once(stated: Iterable[Fact]) -> tuple[Fact, ...]:
    """Where two relationships or analytics of one page say the same, the first one's evidence stands."""
    facts: dict[tuple[str, str], Fact] = {}
    for fact in stated:
        facts.setdefault((fact.relation, fact.object), fact)
    return tuple(facts.values())


def _stated(bundle: Bundle, technique: dict, tactics: list[str]) -> Iterator[Fact]:
    subject = _named(bundle, technique)
    for tactic in tactics:
        yield Fact(subject, "tactic", tactic, f"{subject} serves the tactic {tactic}.")
    for edge in bundle.incoming("mitigates", technique, "course-of-action"):
        name = edge.other["name"]
        yield Fact(
            subject, "mitigation", name, first_sentence(edge.description) or f"{subject} is mitigated by {name}."
        )
    for edge in bundle.incoming("detects", technique, "x-mitre-data-component"):
        name = _component_name(bundle, edge.other)
        yield Fact(subject, "detection", name, first_sentence(edge.description) or _detected(subject, name))
    for analytic in _analytics(bundle, technique):
        for name in _analytic_components(bundle, analytic):
            yield Fact(subject, "detection", name, _detected(subject, name))


def _uses(bundle: Bundle, actor: dict) -> Iterator[Fact]:
    subject, relations = _named(bundle, actor), _USES[actor["type"]]
    for edge in bundle.outgoing("uses", actor, *relations):
        used = _named(bundle, edge.other)
        evidence = first_sentence(edge.description) or f"{subject} uses {used}."
        yield Fact(subject, relations[edge.other["type"]], used, evidence)


def _kind_sentence(bundle: Bundle, technique: dict, tactics: list[str]) -> str:
    number, _ = stix.reference(technique, _PUBLISHER, bundle.path)
    parents = [edge.other for edge in bundle.outgoing("subtechnique-of", technique)]
    kind = f"a sub-technique of {_named(bundle, parents[0])}" if parents else "a technique"
    if not tactics:
        return f"{number} is {kind}."
    joint = ", of" if parents else " of"
    return f"{number} is {kind}{joint} the {'tactics' if len(tactics) > 1 else 'tactic'} {listing(tactics)}."


def _component_name(bundle: Bundle, component: dict) -> str:
    """Returns "Process: OS API Execution"; the component's name alone where version 18 dropped the data source."""
    sources = bundle.present([component.get("x_mitre_data_source_ref", "")])
    return f"{sources[0]['name']}: {component['name']}" if sources else component["name"]


def _detected(subject: str, component: str) -> str:
    return f"{subject} is detected with the data component {component}."


def _analytics(bundle: Bundle, technique: dict) -> list[dict]:
    strategies = bundle.incoming("detects", technique, "x-mitre-detection-strategy")
    return [
        analytic
        for strategy in strategies
        for analytic in bundle.present(strategy.other.get("x_mitre_analytic_refs", []))
    ]


def _analytic_components(bundle: Bundle, analytic: dict) -> list[str]:
    sources = analytic.get("x_mitre_log_source_references", [])
    components = bundle.present([source.get("x_mitre_data_component_ref", "") for source in sources])
    return list(dict.fromkeys(_component_name(bundle, component) for component in components))


def _analytic(bundle: Bundle, analytic: dict) -> str:
    platforms = analytic.get("x_mitre_platforms")
    label = f"Analytic for {listing(platforms)}" if platforms else "Analytic"
    components = _analytic_components(bundle, analytic)
    needs = f" Data components: {listing(components)}." if components else ""
    return labelled(label, clean(analytic.get("description", "")) + needs)


def _tactic(bundle: Bundle, tactic: dict, tactics: dict[str, dict]) -> str:
    members = [
        _named(bundle, technique)
        for technique in bundle.of_type("attack-pattern")
        if tactic["name"] in _tactics_of(technique, tactics) and not bundle.outgoing("subtechnique-of", technique)
    ]
    return paragraphs(
        clean(tactic.get("description", "")),
        f"The tactic {_named(bundle, tactic)} holds the techniques {listing(members)}." if members else "",
    )


def _mitigation(bundle: Bundle, mitigation: dict) -> str:
    mitigated = bundle.outgoing("mitigates", mitigation, "attack-pattern")
    return paragraphs(
        clean(mitigation.get("description", "")),
        _sentence(f"{_named(bundle, mitigation)} mitigates", bundle, mitigated),
    )


def _actor(bundle: Bundle, actor: dict) -> str:
    """Returns the page of a group, a piece of software or a campaign; its procedures stand with the techniques."""
    named = _named(bundle, actor)
    aliases = [alias for alias in actor.get("aliases", actor.get("x_mitre_aliases", [])) if alias != actor["name"]]
    return paragraphs(
        clean(actor.get("description", "")),
        f"{named} is also known as {listing(aliases)}." if aliases else "",
        _values("Platforms", actor.get("x_mitre_platforms", [])),
        f"It was active from {actor['first_seen'][:7]} to {actor['last_seen'][:7]}."
        if "first_seen" in actor and "last_seen" in actor
        else "",
        _sentence(f"{named} is attributed to", bundle, bundle.outgoing("attributed-to", actor)),
        _sentence(f"{named} uses the techniques", bundle, bundle.outgoing("uses", actor, "attack-pattern")),
        _sentence(f"{named} uses the software", bundle, bundle.outgoing("uses", actor, "malware", "tool")),
        _sentence(f"{named} is used by", bundle, bundle.incoming("uses", actor, "intrusion-set", "campaign")),
    )


def _numbered(bundle: Bundle, thing: dict) -> str:
    """Returns "M1040 Behavior Prevention on Endpoint"."""
    return f"{stix.reference(thing, _PUBLISHER, bundle.path)[0]} {clean(thing['name'])}"


def _told(label: str, edge: Edge) -> str:
    return labelled(label, edge.description) or f"{label}."


def _values(label: str, values: list[str]) -> str:
    return f"{label}: {listing(clean(value).rstrip('.') for value in values)}." if values else ""


def _sentence(beginning: str, bundle: Bundle, edges: list[Edge]) -> str:
    return f"{beginning} {_names(bundle, edges)}." if edges else ""
