"""The commit protocol between several nodes, searched through by spin: what the design promises holds in every
interleaving of the model, each condition, lock and rule is needed for that, and the model does what nodes do.

The model and what it leaves out: ca_core/records/model/README.md. ENROLLD_LONG=1 searches the
larger scenarios too.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from ca_core.model import Means
from ca_core.registration.conditions import CONDITIONS
from tests.end_to_end.clients import needs
from tests.helpers.spin import MODEL, Report, search

LONG = os.environ.get("ENROLLD_LONG") == "1"

SECRET, FACTORY, OWN, MIXED = (f"-DSCENARIO_{name}" for name in ("SECRET", "FACTORY", "OWN", "MIXED"))
TRANSACTIONS, NAMES = "-DTRANSACTIONS", "-DNAMES"


@dataclass(frozen=True, slots=True)
class Mutation:
    """What is taken away, in which scenario with how many acts, and the invariants that must then be broken.

    Of several, all are: then the search goes on after the first.
    """

    name: str
    scenario: tuple[str, ...]
    broken: frozenset[str]
    acts: int = 1

    @property
    def id(self) -> str:
        words = (option.removeprefix("-D").removeprefix("SCENARIO_").lower() for option in self.scenario)
        return f"{self.name}-{'-'.join(words)}"


def mutation(name: str, scenario: str | tuple[str, ...], *broken: str, acts: int = 1) -> Mutation:
    return Mutation(name, (scenario,) if isinstance(scenario, str) else scenario, frozenset(broken), acts)


SCEP_FACTORY, SCEP_OWN, SCEP_MIXED = (FACTORY, TRANSACTIONS, NAMES), (OWN, TRANSACTIONS, NAMES), (MIXED, TRANSACTIONS)
OLD_REALM = "nothing_is_issued_under_an_old_realm"
SUSPENDED = "nothing_is_issued_after_a_suspend"
RETIRED_ISSUER = "nothing_is_issued_by_a_retired_issuer"
BLOCKED_KEY = "nothing_is_issued_for_a_blocked_key"
BLOCKED_CREDENTIAL = "nothing_is_issued_on_a_blocked_credential"
REPLACED_BOARD = "nothing_is_issued_to_a_replaced_board"
ONE_DEVICE = "a_key_is_of_one_device"
ONE_KEY = "a_transaction_is_of_one_key"
ONCE = "a_secret_serves_once"
DEAD = "a_dead_secret_serves_nothing_new"
NOT_A_SECOND = "a_retransmission_is_not_a_second_request"
REVOKED = "nothing_is_issued_after_a_revoke"
ONE_ASKING = "one_asking_makes_one_certificate"
STRANDED = "a_device_is_never_stranded"

CONDITION_MUTATIONS = {
    Means.SECRET: [
        mutation("realm_version", SECRET, OLD_REALM),
        mutation("device_state", SECRET, SUSPENDED),
        mutation("issuer_active", SECRET, RETIRED_ISSUER),
        # A key that a secret served is blocked, and a new secret asks for it.
        mutation("key_not_blocked", SECRET, BLOCKED_KEY, acts=2),
        # Of two secrets of a device one is void: another key can only come by another credential.
        mutation("transaction_not_of_other_key", SCEP_MIXED, ONE_KEY),
        mutation("key_not_of_other_device", SECRET, ONE_DEVICE),
        mutation("secret_unspent", SECRET, ONCE, DEAD),
    ],
    Means.IDEVID: [
        mutation("realm_version", FACTORY, OLD_REALM),
        mutation("device_state", FACTORY, SUSPENDED),
        mutation("issuer_active", FACTORY, RETIRED_ISSUER),
        mutation("key_not_blocked", FACTORY, BLOCKED_KEY),
        mutation("transaction_not_of_other_key", SCEP_FACTORY, ONE_KEY),
        mutation("key_not_of_other_device", FACTORY, ONE_DEVICE),
        mutation("credential_key_not_blocked", FACTORY, BLOCKED_CREDENTIAL),
        mutation("device_identity", FACTORY, REPLACED_BOARD),
        mutation("transaction_not_begun", SCEP_FACTORY, "a_factory_identity_certifies_a_key_once"),
        mutation("not_asked_before", FACTORY, NOT_A_SECOND),
    ],
    Means.OWN_CERTIFICATE: [
        mutation("realm_version", OWN, OLD_REALM),
        mutation("device_state", OWN, SUSPENDED),
        mutation("issuer_active", OWN, RETIRED_ISSUER),
        mutation("key_not_blocked", OWN, BLOCKED_KEY),
        mutation("transaction_not_of_other_key", SCEP_OWN, ONE_KEY),
        mutation("key_not_of_other_device", OWN, ONE_DEVICE),
        mutation("credential_key_not_blocked", OWN, BLOCKED_CREDENTIAL),
        mutation("certificate_valid", OWN, REVOKED),
        mutation("transaction_not_served", SCEP_OWN, "a_transaction_renews_once"),
        mutation("newer_certificate_valid", OWN, "nothing_is_issued_after_a_revoke_of_a_newer_one"),
        mutation("not_asked_before", OWN, NOT_A_SECOND),
    ],
}
LOCK_MUTATIONS = [
    mutation("lock_gate", SECRET, OLD_REALM, SUSPENDED, RETIRED_ISSUER, DEAD),
    mutation("lock_gate", FACTORY, OLD_REALM, SUSPENDED, RETIRED_ISSUER, BLOCKED_CREDENTIAL, REPLACED_BOARD),
    mutation("lock_gate", OWN, OLD_REALM, SUSPENDED, RETIRED_ISSUER, BLOCKED_KEY, REVOKED),
    mutation("lock_device", SECRET, ONCE),
    mutation("lock_device", SCEP_FACTORY, ONE_KEY),
    mutation("lock_device", SCEP_OWN, ONE_KEY),
    mutation("lock_key", SECRET, ONE_DEVICE),
    mutation("lock_key", FACTORY, ONE_DEVICE),
    mutation("lock_key", OWN, ONE_DEVICE),
]
RULE_MUTATIONS = [
    mutation("rule_answer_after_commit", SECRET, "nothing_leaves_before_its_record_is_durable"),
    mutation("rule_look_up", FACTORY, ONE_ASKING),
    mutation("rule_look_up_under_locks", FACTORY, ONE_ASKING),
    mutation("rule_one_transaction", SECRET, STRANDED),
    mutation("rule_one_key", SECRET, "the_answer_is_for_who_asks"),
    mutation("rule_any_transaction", SCEP_MIXED, STRANDED),
]
MUTATIONS = [*LOCK_MUTATIONS, *RULE_MUTATIONS, *(each for many in CONDITION_MUTATIONS.values() for each in many)]

SCENARIOS = [
    pytest.param((SECRET, "-DACTS=2"), id="secret"),
    pytest.param((SECRET, NAMES, "-DACTS=1"), id="secret-names"),
    pytest.param((FACTORY, "-DACTS=2"), id="factory"),
    pytest.param((FACTORY, TRANSACTIONS, NAMES, "-DACTS=2"), id="factory-transactions-names"),
    pytest.param((OWN, "-DACTS=2"), id="own"),
    pytest.param((OWN, TRANSACTIONS, "-DACTS=2"), id="own-transactions"),
    pytest.param((OWN, TRANSACTIONS, NAMES, "-DACTS=1"), id="own-transactions-names"),
    pytest.param((MIXED, TRANSACTIONS, "-DACTS=1"), id="mixed-transactions"),
]
if LONG:
    SCENARIOS += [
        pytest.param((SECRET, NAMES, "-DACTS=2"), id="secret-names-two-acts"),
        pytest.param((OWN, TRANSACTIONS, NAMES, "-DACTS=2"), id="own-transactions-names-two-acts"),
        pytest.param((MIXED, TRANSACTIONS, "-DACTS=2"), id="mixed-transactions-two-acts"),
    ]
REACHED = [
    pytest.param("answer_of_a_node_killed_in_commit", (SECRET,), id="killed-in-commit-and-asked-again-by-secret"),
    pytest.param("answer_of_a_node_killed_in_commit", (FACTORY,), id="killed-in-commit-and-asked-again-by-idevid"),
    pytest.param("answer_of_a_node_killed_in_commit", (OWN,), id="killed-in-commit-and-asked-again-by-certificate"),
    pytest.param("answer_of_a_node_killed_in_commit", SCEP_OWN, id="killed-in-commit-and-asked-again-in-a-transaction"),
    pytest.param("answer_of_a_node_killed_after_commit", (SECRET,), id="killed-before-the-answer-and-asked-again"),
    pytest.param("guard_finds_what_was_not_read", (SECRET,), id="the-dead-node's-commit-comes-between-read-and-guard"),
    pytest.param("answer_after_looking_up", (FACTORY,), id="a-commit-of-unknown-outcome-that-was-one"),
    pytest.param("commit_after_looking_up", (FACTORY,), id="a-commit-of-unknown-outcome-that-was-none"),
    pytest.param("all_served_in_spite_of_all_crashes", (SECRET,), id="every-secret-serves-after-two-crashes"),
    pytest.param("all_served_in_spite_of_all_crashes", SCEP_OWN, id="every-certificate-is-made-after-two-crashes"),
    pytest.param("renewal_by_a_renewed_certificate", (OWN,), id="a-renewed-certificate-renews-itself"),
]
NOT_BY_ONE_ACT = {"suspended[0] = 0", "cert[3].revoked = 1", "cert[3].old = 1"}
"""What takes two acts: one after another, or one for a third certificate to be asked for."""


def model() -> dict[str, str]:
    return {path.name: path.read_text() for path in MODEL.glob("*.pml")}


def named(prefix: str) -> set[str]:
    """All that the model can be told to do without, or to reach."""
    return set(re.findall(rf"^#ifn?def {prefix}_(\w+)$", "".join(model().values()), re.MULTILINE))


def conditions_of(inline: str) -> list[str]:
    """The conditions that a part of the model's guard repeats, by name, in their order."""
    found = re.search(
        rf"^inline {inline}\(\) {{$(?P<body>.*?)^}}$", model()["conditions.pml"], re.MULTILINE | re.DOTALL
    )
    assert found is not None, inline
    return re.findall(r"^#ifndef WITHOUT_(\w+)$", found["body"], re.MULTILINE)


def searched(folder: Path, *options: str, **more: bool) -> Report:
    needs("spin", "gcc")
    report = search(folder, *options, **more)
    print(f"{report.states} states, {report.errors} errors")
    return report


# --- the model is that of the code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "inline"),
    [
        pytest.param(Means.SECRET, "by_secret", id="secret"),
        pytest.param(Means.IDEVID, "by_factory_identity", id="idevid"),
        pytest.param(Means.OWN_CERTIFICATE, "by_own_certificate", id="own-certificate"),
    ],
)
def test_the_model_repeats_the_conditions_of_the_code(means: Means, inline: str) -> None:
    modelled = conditions_of("always") + conditions_of(inline)
    assert len(modelled) == len(set(modelled))
    assert set(modelled) == set(CONDITIONS[means])
    assert {each.name for each in CONDITION_MUTATIONS[means]} == set(CONDITIONS[means]), "each is taken away below"


def test_every_means_is_modelled_or_repeats_no_more_than_one_that_is() -> None:
    """Who proves no device of its own repeats what a factory identity repeats, but for what concerns that identity.

    What ways of admission add (`conditions.NARROWING`) is taken away on real stores, in test_ways.
    """
    assert set(CONDITIONS) == set(Means)
    others = set(CONDITIONS) - set(CONDITION_MUTATIONS)
    assert others == {Means.CHALLENGE, Means.OPEN, Means.APPROVAL}
    for means in others:
        assert set(CONDITIONS[Means.IDEVID]) - set(CONDITIONS[means]) == {
            "credential_key_not_blocked",
            "device_identity",
        }
        assert set(CONDITIONS[means]) < set(CONDITIONS[Means.IDEVID])


def test_all_that_can_be_taken_away_is_taken_away_and_all_that_can_be_reached_is_reached() -> None:
    assert {each.name for each in MUTATIONS} == named("WITHOUT")
    assert {each.values[0] for each in REACHED} == named("REACH")


def test_every_invariant_is_broken_by_something() -> None:
    declared = re.findall(r"^hidden byte (\w+);$", model()["invariants.pml"], re.MULTILINE)
    declared.remove("it_is_reached")
    assert set().union(*(each.broken for each in MUTATIONS)) == set(declared)


# --- what the design promises ----------------------------------------------------------------------------------------


@pytest.mark.foreign
@pytest.mark.parametrize("options", SCENARIOS)
def test_every_invariant_holds_in_every_state(options: tuple[str, ...], tmp_path: Path) -> None:
    report = searched(tmp_path, *options)
    assert report.errors == 0, report.text
    assert report.is_complete, report.text
    assert report.states > 100_000
    unreached = {text for _, _, text in (each.partition(": ") for each in report.unreached)}
    assert unreached <= (NOT_BY_ONE_ACT if "-DACTS=1" in options else set()), report.unreached


@pytest.mark.foreign
def test_a_search_that_is_cut_short_is_not_taken_for_a_complete_one(tmp_path: Path) -> None:
    needs("spin", "gcc")
    report = search(tmp_path, SECRET, "-DACTS=0", depth=50, quickly=True)
    assert report.errors == 0
    assert not report.is_complete


# --- nothing of it can be left out -----------------------------------------------------------------------------------


@pytest.mark.foreign
@pytest.mark.parametrize("without", MUTATIONS, ids=lambda each: each.id)
def test_without_it_an_invariant_is_broken(without: Mutation, tmp_path: Path) -> None:
    options = (*without.scenario, f"-DACTS={without.acts}", f"-DWITHOUT_{without.name}")
    all_of = len(without.broken) > 1
    report = searched(tmp_path, *options, quickly=True, every_error=all_of)
    # After the first the model is in states that nothing of it is made for, so that others may follow.
    found = report.violated & without.broken if all_of else report.violated
    assert found == without.broken, report.text[-4000:]


# --- the model does what nodes do ------------------------------------------------------------------------------------


@pytest.mark.foreign
@pytest.mark.parametrize(("what", "scenario"), REACHED)
def test_it_is_possible(what: str, scenario: tuple[str, ...], tmp_path: Path) -> None:
    report = searched(tmp_path, *scenario, "-DACTS=1", f"-DREACH_{what}", quickly=True)
    assert report.violated == {"!(it_is_reached)"}, report.text
