from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest

from braid.llm_core.core import Offer, PolicyConfig, RequestClass
from braid.llm_core.scheduler.policy import Decision, Reason, ServiceHistory, pick

INTERACTIVE, STANDARD, BATCH = RequestClass
NO_SHARES = PolicyConfig(min_share={})
LONGEST_MS = 100.0


def offer(
    name: str,
    deadline: float,
    request_class: RequestClass = INTERACTIVE,
    *,
    tenant: str = "",
    batch_key: Hashable = None,
    cost_ms: float = 10.0,
) -> Offer:
    return Offer(name, "toy", "work", batch_key, request_class, deadline, cost_ms, tenant=tenant)


def choose(offers: list[Offer], *, now: float = 0.0, history: ServiceHistory | None = None, **config: Any) -> Decision:
    policy = PolicyConfig(**config) if config else NO_SHARES
    decision = pick(offers, now, history or ServiceHistory(policy, LONGEST_MS), policy)
    assert decision is not None
    return decision


def test_nothing_offered_is_nothing_chosen() -> None:
    assert pick([], 0.0, ServiceHistory(NO_SHARES, LONGEST_MS), NO_SHARES) is None


def test_the_earliest_deadline_goes_first() -> None:
    decision = choose([offer("a", 3.0), offer("b", 1.0, BATCH), offer("c", 2.0)])
    assert (decision.lead.request_id, decision.reason) == ("b", Reason.DEADLINE)


def test_ties_go_to_class_then_least_served_tenant_then_order() -> None:
    history = ServiceHistory(NO_SHARES, LONGEST_MS)
    history.record(0.0, [offer("x", 0.0, tenant="busy")], 50.0)
    offers = [
        offer("batch", 1.0, BATCH),
        offer("busy", 1.0, tenant="busy"),
        offer("first", 1.0, tenant="a"),
        offer("second", 1.0, tenant="b"),
    ]
    order = []
    while offers:
        lead = choose(offers, history=history).lead
        order.append(lead.request_id)
        offers.remove(lead)
    assert order == ["first", "second", "busy", "batch"]


def test_members_come_in_order_of_urgency_after_the_lead() -> None:
    shared = [offer(name, deadline, batch_key="k") for name, deadline in [("a", 3.0), ("b", 1.0), ("c", 2.0)]]
    decision = choose([*shared, offer("d", 1.5), offer("e", 0.5, batch_key="other", request_class=BATCH)][:4])
    assert [member.request_id for member in decision.members] == ["b", "c", "a"]


def test_none_never_shares() -> None:
    assert len(choose([offer("a", 1.0), offer("b", 1.0)]).members) == 1


def test_an_owed_class_goes_first_and_takes_along_who_shares() -> None:
    policy = PolicyConfig(min_share={BATCH: 0.2})
    history = ServiceHistory(policy, LONGEST_MS)
    chat, video = offer("chat", 1.0, batch_key="k"), offer("video", 9.0, BATCH, batch_key="k", cost_ms=10.0)
    chosen = []
    for step in range(50):
        history.notice([chat, video])
        decision = pick([chat, video], 0.0, history, policy)
        assert decision is not None
        chosen.append(decision.lead.request_id)
        history.record(step * 0.01, [decision.lead], 10.0)
    assert chosen[:15] == [*["chat"] * 5, "video", *["chat"] * 4, "video", *["chat"] * 4]
    history.credit_ms[BATCH] = 1.0
    decision = choose_with(policy, history, [chat, video])
    assert [member.request_id for member in decision.members] == ["video", "chat"]
    assert decision.reason is Reason.SHARE


def choose_with(policy: PolicyConfig, history: ServiceHistory, offers: list[Offer]) -> Decision:
    decision = pick(offers, 0.0, history, policy)
    assert decision is not None
    return decision


def test_of_two_owed_classes_the_one_owed_for_longest_goes_first() -> None:
    policy = PolicyConfig(min_share={STANDARD: 0.4, BATCH: 0.1})
    history = ServiceHistory(policy, LONGEST_MS)
    offers = [offer("image", 2.0, STANDARD), offer("video", 3.0, BATCH), offer("chat", 1.0)]
    history.credit_ms = {STANDARD: 8.0, BATCH: 3.0}  # owed for 20 and for 30 ms
    assert choose_with(policy, history, offers).lead.request_id == "video"
    history.credit_ms = {BATCH: 3.0, STANDARD: 16.0}
    assert choose_with(policy, history, offers).lead.request_id == "image"


def test_coming_and_going_earns_nothing() -> None:
    policy = PolicyConfig(min_share={BATCH: 0.2})
    history = ServiceHistory(policy, LONGEST_MS)
    chat, video = offer("chat", 1.0), offer("video", 9.0, BATCH)
    for _ in range(20):
        history.notice([chat, video])
        history.record(0.0, [chat], 30.0)
        history.notice([chat])
        history.record(0.0, [chat], 1000.0)
    assert BATCH not in history.credit_ms
    history.notice([chat, video])
    assert history.credit_ms[BATCH] == pytest.approx(-8.0)


def test_a_class_served_beyond_its_share_is_not_punished_for_long() -> None:
    policy = PolicyConfig(min_share={BATCH: 0.25})
    history = ServiceHistory(policy, LONGEST_MS)
    video = offer("video", 9.0, BATCH)
    history.notice([video])
    for _ in range(100):
        history.record(0.0, [video], 40.0)
    assert history.credit_ms[BATCH] == pytest.approx(-30.0)  # one step of 40 less the quarter that it was due


def test_overdue_offers_are_ordered_by_least_served_tenant() -> None:
    history = ServiceHistory(NO_SHARES, LONGEST_MS)
    history.record(9.9, [offer("x", 0.0, tenant="crowd")], 80.0)
    offers = [offer("c1", 1.0, tenant="crowd"), offer("c2", 2.0, tenant="crowd"), offer("s", 9.8, tenant="single")]
    decision = choose(offers, now=10.0, history=history)
    assert (decision.lead.request_id, decision.reason) == ("s", Reason.OVERLOAD)
    decision = choose(offers, now=9.85, history=history)  # "s" is late, but by less than the longest step
    assert decision.lead.request_id == "c1"


def test_what_was_served_is_forgotten_after_the_window() -> None:
    history = ServiceHistory(PolicyConfig(share_window_ms=1000.0), LONGEST_MS)
    history.record(1.0, [offer("x", 0.0, tenant="a"), offer("y", 0.0, tenant="b")], 30.0)
    history.record(1.5, [offer("x", 0.0, tenant="a")], 10.0)
    assert history.served_ms == {"a": pytest.approx(25.0), "b": pytest.approx(15.0)}
    history.record(2.2, [offer("z", 0.0, tenant="c")], 5.0)
    assert history.served_ms == {"a": pytest.approx(10.0), "c": pytest.approx(5.0)}


def test_a_step_over_its_limit_puts_off_overload_until_the_device_rests() -> None:
    history = ServiceHistory(NO_SHARES, LONGEST_MS)
    history.record(0.0, [offer("x", 0.0)], 900.0)
    assert history.longest_step_ms == 900.0
    history.rest()
    assert history.longest_step_ms == LONGEST_MS


def test_choosing_changes_nothing() -> None:
    policy = PolicyConfig()
    history = ServiceHistory(policy, LONGEST_MS)
    offers = [offer("a", 1.0, tenant="t"), offer("b", 0.5, BATCH)]
    history.notice(offers)
    history.record(0.0, offers[:1], 20.0)
    before = (dict(history.credit_ms), dict(history.served_ms), history.longest_step_ms, list(offers))
    assert choose_with(policy, history, offers) == choose_with(policy, history, offers)
    assert (dict(history.credit_ms), dict(history.served_ms), history.longest_step_ms, list(offers)) == before
