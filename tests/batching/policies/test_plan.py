"""What each policy decides: small cases worked out by hand."""

import numpy as np
import pytest

from burrstone.batching.core.step_model import StepModel
from burrstone.batching.policies.engine_policy import Arrival, EnginePolicy, Plan
from burrstone.batching.policies.spec import Knobs, PolicySpec

# 10 ms a step, 1 ms a prefill token, 1 ms a decode.
MODEL = StepModel(base_s=0.010, prefill_token_s=0.001, decode_seq_s=0.001, kv_token_s=0.0, attention_pair_s=0.0)


def policy_of(text: str, knobs: Knobs | None = None) -> EnginePolicy:
    return EnginePolicy(PolicySpec.parse(text, knobs), MODEL, max_step_tokens=1000, block_tokens=16)


def plan(
    policy: EnginePolicy,
    waiting: list[int],
    running: list[int] | None = None,
    *,
    free_slots: int = 8,
    free_blocks: int = 1000,
    now_s: float = 0.0,
) -> Plan:
    return policy.plan(
        np.array(waiting, dtype=np.int64),
        np.array(running or [], dtype=np.int64),
        free_slots=free_slots,
        free_blocks=free_blocks,
        now_s=now_s,
    )


def decoding(policy: EnginePolicy, arrival: Arrival, *, tokens: int, now_s: float) -> int:
    """A request that is running and has produced so many tokens, the first one at now_s."""
    row = policy.add(arrival, now_s)
    policy.admitted(row, 0)
    policy.served(row, tokens, now_s)
    policy.requests[row]["computed_tokens"] = arrival.prompt_tokens + tokens - 1
    return row


def test_fcfs_leaves_everything_as_it_is() -> None:
    policy = policy_of("fcfs")
    rows = [policy.add(Arrival(10, 10, priority=-n), 0.0) for n in range(4)]
    decided = plan(policy, [rows[2], rows[0]], [rows[3], rows[1]])
    assert list(decided.waiting) == [rows[2], rows[0]]
    assert list(decided.running) == [rows[3], rows[1]]
    assert (decided.budget, decided.parked) == (1000, 0)


def test_priority_is_settled_by_arrival() -> None:
    policy = policy_of("priority > fcfs")
    rows = [policy.add(Arrival(10, 10, priority=priority), 0.0) for priority in (1, 0, 1, 0)]
    assert list(plan(policy, rows[::-1]).waiting) == [rows[1], rows[3], rows[0], rows[2]]


def test_nothing_is_ordered_while_no_slot_is_free() -> None:
    policy = policy_of("priority")
    rows = [policy.add(Arrival(10, 10, priority=-n), 0.0) for n in range(3)]
    assert list(plan(policy, rows, free_slots=0).waiting) == rows


def test_slo_puts_the_earliest_deadline_first_and_lost_ones_last() -> None:
    policy = policy_of("slo")
    lost = policy.add(Arrival(2000, 10, ttft_s=1.0), 0.0)  # needs over two seconds of prefill
    late = policy.add(Arrival(100, 10, ttft_s=30.0), 0.0)
    soon = policy.add(Arrival(100, 10, ttft_s=1.0), 0.0)
    assert list(plan(policy, [lost, late, soon]).waiting) == [soon, late, lost]


def test_slo_gives_requests_without_a_deadline_their_patience() -> None:
    policy = policy_of("slo", Knobs(patience_s=5.0))
    patient = policy.add(Arrival(10, 10), 0.0)
    batch = policy.add(Arrival(10, 10, ttft_s=60.0), 0.0)
    assert list(plan(policy, [batch, patient]).waiting) == [patient, batch]


def test_a_lost_request_has_its_turn() -> None:
    policy = policy_of("slo", Knobs(relegated_every=3))
    lost = policy.add(Arrival(2000, 10, ttft_s=1.0), 0.0)
    for _ in range(3):
        row = policy.add(Arrival(10, 10, ttft_s=1.0), 0.0)
        assert plan(policy, [lost, row]).waiting[0] == row
        policy.admitted(row, 0)
    row = policy.add(Arrival(10, 10, ttft_s=1.0), 0.0)
    assert plan(policy, [row, lost]).waiting[0] == lost
    policy.admitted(lost, 0)
    again = policy.add(Arrival(2000, 10, ttft_s=1.0), 0.0)
    assert plan(policy, [again, row]).waiting[0] == row


def test_the_step_fits_into_the_tightest_decodes_slack() -> None:
    policy = policy_of("slo", Knobs(slack_margin=1.0, min_chunk_tokens=10))
    row = decoding(policy, Arrival(100, 50, tpot_s=0.111), tokens=1, now_s=0.0)
    # Due at 111 ms; the step itself takes 10, the decode 1, so 100 ms are left for prefill: 100 tokens.
    assert plan(policy, [], [row]).budget == 101
    # An earlier token gained time that a longer step may use.
    assert plan(policy, [], [row], now_s=-0.05).budget == pytest.approx(151, abs=1)
    # However little slack there is, prefill goes on.
    assert plan(policy, [], [row], now_s=0.2).budget == 11
    # What cannot be on time any more, however small the steps, holds back nobody.
    assert plan(policy, [], [row], now_s=10.0).budget == 1000


def test_drafted_tokens_have_their_place_in_the_step() -> None:
    spec = PolicySpec.parse("slo", Knobs(min_chunk_tokens=10))
    policy = EnginePolicy(spec, MODEL, max_step_tokens=1000, block_tokens=16, decode_tokens=5)
    rows = [decoding(policy, Arrival(100, 50, tpot_s=0.111), tokens=1, now_s=0.0) for _ in range(20)]
    assert plan(policy, [], rows, now_s=0.2).budget == 20 * 5 + 10


def test_a_long_prefill_steps_aside_only_for_one_that_would_be_late() -> None:
    policy = policy_of("slo")
    long = policy.add(Arrival(5000, 10, ttft_s=60.0), 0.0)
    policy.admitted(long, 0)
    urgent = policy.add(Arrival(100, 10, ttft_s=1.0), 0.0)
    assert plan(policy, [urgent], [long]).parked == 1
    relaxed = policy.add(Arrival(100, 10, ttft_s=20.0), 0.0)
    assert plan(policy, [relaxed], [long]).parked == 0
    # Where the urgent prompt's KV does not fit, holding the other one back would help nobody.
    assert plan(policy, [urgent], [long], free_blocks=5).parked == 0


def test_inside_other_tiers_nobody_is_parked() -> None:
    policy = policy_of("priority > slo")
    important = policy.add(Arrival(5000, 10, ttft_s=60.0, priority=0), 0.0)
    policy.admitted(important, 0)
    urgent = policy.add(Arrival(100, 10, ttft_s=1.0, priority=5), 0.0)
    assert plan(policy, [urgent], [important]).parked == 0


def test_a_lost_requests_turn_comes_within_its_priority() -> None:
    policy = policy_of("priority > slo", Knobs(relegated_every=1))
    lost = policy.add(Arrival(2000, 10, ttft_s=1.0, priority=9), 0.0)
    peer = policy.add(Arrival(10, 10, ttft_s=1.0, priority=9), 0.0)
    policy.admitted(policy.add(Arrival(10, 10), 0.0), 0)
    better = policy.add(Arrival(10, 10, ttft_s=1.0, priority=0), 0.0)
    assert list(plan(policy, [peer, lost, better]).waiting) == [better, lost, peer]


def test_a_far_deadline_does_not_end_a_requests_patience() -> None:
    policy = policy_of("slo")
    old = policy.add(Arrival(10, 10, deadline_s=1800.0), 0.0)
    fresh = policy.add(Arrival(10, 10, ttft_s=20.0), 45.0)
    assert list(plan(policy, [fresh, old], now_s=45.0).waiting) == [old, fresh]


def test_a_trickle_earns_no_credit() -> None:
    policy = policy_of("vtc")
    busy = [policy.add(Arrival(100, 10, tenant=0), 0.0) for _ in range(3)]
    trickle = policy.add(Arrival(1, 1000, tenant=1), 0.0)
    policy.admitted(trickle, 0)
    policy.admitted(busy[0], 0)
    policy.served(busy[0], 500, 1.0)
    policy.add(Arrival(1, 10, tenant=1), 2.0)
    assert policy.tenants[1]["service"] == policy.tenants[0]["service"]


def test_vtc_takes_turns_by_tokens_not_by_requests() -> None:
    policy = policy_of("vtc", Knobs(prompt_weight=1.0))
    short = [policy.add(Arrival(100, 10, tenant=0), 0.0) for _ in range(4)]
    long = [policy.add(Arrival(200, 10, tenant=1), 0.0) for _ in range(2)]
    assert list(plan(policy, short + long).waiting) == [short[0], long[0], short[1], short[2], long[1], short[3]]


def test_vtc_shares_by_weight() -> None:
    policy = policy_of("vtc")
    heavy = [policy.add(Arrival(100, 10, tenant=0, weight=2.0), 0.0) for _ in range(4)]
    light = [policy.add(Arrival(100, 10, tenant=1), 0.0) for _ in range(2)]
    assert sorted(plan(policy, heavy + light).waiting[:3]) == sorted([*heavy[:2], light[0]])


def test_a_tenant_that_was_idle_has_no_credit() -> None:
    policy = policy_of("vtc")
    busy = policy.add(Arrival(100, 1000, tenant=0), 0.0)
    policy.admitted(busy, 0)
    policy.served(busy, 500, 1.0)
    policy.add(Arrival(100, 10, tenant=1), 2.0)
    assert policy.tenants[1]["service"] == policy.tenants[0]["service"] == 100 + 2 * 500


def test_cached_prompt_tokens_are_not_charged() -> None:
    policy = policy_of("vtc")
    row = policy.add(Arrival(100, 10, tenant=0), 0.0)
    policy.admitted(row, 80)
    assert policy.tenants[0]["service"] == 20


def test_a_preempted_request_pays_its_prompt_once() -> None:
    policy = policy_of("vtc")
    row = policy.add(Arrival(100, 10, tenant=0), 0.0)
    policy.admitted(row, 0)
    policy.preempted(row)
    policy.admitted(row, 0)
    assert policy.tenants[0]["service"] == 100


def test_programs_are_served_in_the_order_in_which_they_began() -> None:
    policy = policy_of("program")
    young = policy.add(Arrival(10, 10, program=2, program_arrival_s=5.0), 6.0)
    old = policy.add(Arrival(10, 10, program=1, program_arrival_s=1.0), 7.0)
    alone = policy.add(Arrival(10, 10), 5.5)
    assert list(plan(policy, [young, old, alone], now_s=8.0).waiting) == [old, young, alone]


def test_the_shortest_goes_first_until_another_has_waited_too_long() -> None:
    policy = policy_of("sjf-rank", Knobs(aging_s=10.0))
    long = policy.add(Arrival(500, 10, predicted_tokens=10), 0.0)
    short = policy.add(Arrival(20, 10, predicted_tokens=10), 1.0)
    assert list(plan(policy, [long, short], now_s=2.0).waiting) == [short, long]
    assert list(plan(policy, [long, short], now_s=10.5).waiting) == [long, short]


def test_lengths_are_predicted_from_the_tenants_own_past() -> None:
    policy = policy_of("sjf-rank")
    for _ in range(20):
        row = policy.add(Arrival(10, 1000, tenant=0), 0.0)
        policy.admitted(row, 0)
        policy.served(row, 50, 1.0)
        policy.remove(row)
    known = policy.add(Arrival(10, 1000, tenant=0), 2.0)
    stranger = policy.add(Arrival(10, 1000, tenant=1), 2.0)
    assert 50 <= policy.requests[known]["predicted_tokens"] <= 75
    assert policy.requests[stranger]["predicted_tokens"] == 1000


def test_the_worst_decode_is_preempted_first_when_kv_is_short() -> None:
    policy = policy_of("priority")
    low = decoding(policy, Arrival(10, 10, priority=5), tokens=1, now_s=0.0)
    high = decoding(policy, Arrival(10, 10, priority=0), tokens=1, now_s=0.0)
    assert list(plan(policy, [], [low, high]).running) == [low, high]
    assert list(plan(policy, [], [low, high], free_blocks=1).running) == [high, low]


def test_outer_tiers_decide_before_inner_ones() -> None:
    policy = policy_of("priority > vtc > slo")
    rows = {
        (priority, tenant, ttft_s): policy.add(Arrival(10, 10, tenant, priority=priority, ttft_s=ttft_s), 0.0)
        for priority in (1, 0)
        for tenant in (0, 1)
        for ttft_s in (9.0, 5.0)
    }
    order = list(plan(policy, list(rows.values())).waiting)
    assert {row for (priority, _, _), row in rows.items() if priority == 0} == set(order[:4])
    assert order.index(rows[0, 0, 5.0]) < order.index(rows[0, 0, 9.0])
    # Two tenants with equal prompts alternate.
    assert [int(policy.requests[row]["tenant"]) for row in order[:4]] in ([0, 1, 0, 1], [1, 0, 1, 0])
