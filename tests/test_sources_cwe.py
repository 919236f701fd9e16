"""CWE from a small catalogue written by hand, and from XML that means harm."""

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import cwe
from ghost_jax.data.storage.schema import Fact
from tests.test_sources import COMPRESSIONS, check_facts, write

CWE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<Weakness_Catalog xmlns="http://cwe.mitre.org/cwe-7" xmlns:xhtml="http://www.w3.org/1999/xhtml"><Weaknesses>
<Weakness ID="79" Name="Cross-site Scripting " Status="Stable">
  <Description>The product does not neutralize input. It should.</Description>
  <Extended_Description><xhtml:p>One.</xhtml:p><xhtml:ul><xhtml:li>Two
     lines</xhtml:li></xhtml:ul></Extended_Description>
  <Related_Weaknesses><Related_Weakness Nature="ChildOf" CWE_ID="74" View_ID="1000"/>
    <Related_Weakness Nature="ChildOf" CWE_ID="74" View_ID="1003"/>
    <Related_Weakness Nature="ChildOf" CWE_ID="1" View_ID="1000"/>
    <Related_Weakness Nature="PeerOf" CWE_ID="74" View_ID="1000"/></Related_Weaknesses>
  <Common_Consequences><Consequence><Scope>Integrity</Scope><Scope>Availability</Scope><Impact>Modify Data</Impact>
    <Note>Badly.</Note></Consequence>
    <Consequence><Scope>Other</Scope><Impact>Other</Impact><Impact>Modify Data</Impact></Consequence>
    <Consequence><Impact>Hide Activities</Impact></Consequence></Common_Consequences>
  <Potential_Mitigations>
    <Mitigation><Phase>Design</Phase><Description><xhtml:p>Use a library. Any.</xhtml:p></Description></Mitigation>
    <Mitigation><Phase>Testing</Phase><Description>Use a library.</Description></Mitigation>
    <Mitigation><Description>This is complex. Beware.</Description></Mitigation>
    <Mitigation><Description>Do all of these:<xhtml:ul><xhtml:li>This.</xhtml:li></xhtml:ul></Description></Mitigation>
    <Mitigation><Description>Apply [REF-7] or better.</Description></Mitigation>
    <Mitigation><Description>LONG.</Description></Mitigation>
    <Mitigation><Description>Encode output.</Description></Mitigation></Potential_Mitigations>
</Weakness>
<Weakness ID="74" Name="Injection" Status="Incomplete"><Description>It injects.</Description></Weakness>
<Weakness ID="1" Name="DEPRECATED" Status="Deprecated"><Description>Gone.</Description></Weakness>
</Weaknesses></Weakness_Catalog>""".replace("LONG", "Long " * 50)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_cwe_reads(tmp_path, suffix):
    record, parent = cwe.read(write(tmp_path / f"cwe.xml{suffix}", CWE_XML.encode()))
    assert (record.id, record.title, parent.id) == ("CWE-79", "Cross-site Scripting", "CWE-74")
    assert record.url == "https://cwe.mitre.org/data/definitions/79.html"
    assert record.text.split("\n\n") == [
        "The product does not neutralize input. It should.",
        "One.",
        "- Two lines",
        "CWE-79 is a child of Injection (CWE-74).",
        "Consequence for Integrity and Availability: Modify Data. Badly.",
        "Consequence for Other: Other and Modify Data.",
        "Consequence: Hide Activities.",
        "Mitigation in Design: Use a library. Any.",
        "Mitigation in Testing: Use a library.",
        "Mitigation: This is complex. Beware.",
        "Mitigation: Do all of these: - This.",
        "Mitigation: Apply [REF-7] or better.",
        f"Mitigation: {'Long ' * 50}.",
        "Mitigation: Encode output.",
    ]
    subject, sentence = "Cross-site Scripting (CWE-79)", "The product does not neutralize input."
    assert record.facts == (
        Fact("CWE-79", "weakness_name", "Cross-site Scripting", sentence),
        Fact(sentence, "weakness_class", "Cross-site Scripting", f'"{sentence}" describes the weakness {subject}.'),
        Fact(subject, "parent_weakness", "Injection (CWE-74)", f"{subject} is a child of Injection (CWE-74)."),
        Fact(
            *(subject, "consequence", "Modify Data"),
            f"A technical impact of {subject} on Integrity and Availability is Modify Data.",
        ),
        Fact(subject, "consequence", "Hide Activities", f"A technical impact of {subject} is Hide Activities."),
        Fact(
            *(subject, "weakness_mitigation", "Use a library."),
            f"{subject} is mitigated in Design and Testing: Use a library.",
        ),
        Fact(subject, "weakness_mitigation", "Encode output.", f"{subject} is mitigated: Encode output."),
    )
    assert [fact.relation for fact in parent.facts] == ["weakness_name", "weakness_class"]


@pytest.mark.parametrize("status", ["Deprecated", "Obsolete"])
def test_a_retired_weakness_is_left_out_and_not_named_as_a_parent(tmp_path, status):
    path = write(tmp_path / "cwe.xml", CWE_XML.replace("Incomplete", status).encode())
    (record,) = cwe.read(path)
    assert record.id == "CWE-79"
    assert "Injection" not in record.text
    assert not any(fact.relation == "parent_weakness" for fact in record.facts)


@pytest.mark.parametrize("element", ["<Description/>", "<Description> </Description>"])
def test_a_weakness_without_a_description_has_a_name_and_no_class(tmp_path, element):
    path = write(tmp_path / "cwe.xml", CWE_XML.replace("<Description>It injects.</Description>", element).encode())
    records = list(cwe.read(path))
    check_facts(records)
    assert records[1].facts == (Fact("CWE-74", "weakness_name", "Injection", "CWE-74 is Injection."),)


def test_an_empty_field_says_nothing(tmp_path):
    empty = CWE_XML.replace("<Impact>Hide Activities</Impact>", "<Scope/><Impact/>")
    (record, _) = cwe.read(write(tmp_path / "cwe.xml", empty.replace("<Scope>Other</Scope>", "<Scope/>").encode()))
    assert [line for line in record.text.split("\n\n") if line.startswith("Consequence")] == [
        "Consequence for Integrity and Availability: Modify Data. Badly.",
        "Consequence: Other and Modify Data.",
    ]


@pytest.mark.parametrize("depth", [2000, 10_000])
def test_markup_may_nest_deeper_than_python_recurses(tmp_path, depth):
    nested = f"{'<xhtml:b>' * depth}Deep{'</xhtml:b>' * depth} down."
    path = write(tmp_path / "cwe.xml", CWE_XML.replace("It injects.", nested).encode())
    assert [record.text for record in cwe.read(path)][1] == "Deep down."


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("declaration", [BOMB, EXTERNAL, "<!DOCTYPE a>", '<!DOCTYPE a SYSTEM "http://example.org/a">'])
def test_a_dtd_or_an_entity_is_refused(tmp_path, declaration):
    head, body = CWE_XML.split("\n", 1)
    path = write(tmp_path / "cwe.xml", f"{head}\n{declaration}\n{body}".replace("It injects", "&a;").encode())
    with pytest.raises(UserError, match=r"cwe\.xml, line 2: the XML declares a DTD or an entity"):
        list(cwe.read(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CWE_XML.encode()[:-30], r"cwe\.xml, line 26, column \d+: not well-formed XML"),
        (CWE_XML.replace("Badly", "\xff").encode("latin-1"), r"cwe\.xml, line 12, column \d+: not well-formed XML"),
        (CWE_XML.replace('ID="74" Name', 'ID="many" Name').encode(), r"cwe\.xml, before line \d+: a weakness without"),
        (CWE_XML.replace('Name="Injection"', 'Name=" "').encode(), r"before line \d+: a weakness without"),
        (b"<html/>", r"cwe\.xml holds no weakness"),
        (b"", r"cwe\.xml, line 1"),
    ],
)
def test_a_faulty_catalogue_names_the_file_and_the_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        list(cwe.read(write(tmp_path / "cwe.xml", data)))
