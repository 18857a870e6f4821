"""
Webhooks: notices which budgets crossed which thresholds, and sends a message to each webhook that asks for it.

The commit thread only notes which counters of which accounts a group charged, and only of accounts that have
a webhook. A thread compares them with what the ledger has and stores a message per threshold, which the store
takes once; other threads send what is due. At start everything is compared again, so a crash between a commit
and its message loses none. A message that was sent just before a crash is sent again, under the same id.

Without webhooks there is no thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.manage import Manage
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.instants import US_PER_S
from tollkeeper.domain.matching import scope_counter_of
from tollkeeper.domain.wanted_scopes import WantedScope
from tollkeeper.domain.webhooks import (
    StoredWebhook,
    WebhookMessage,
    crossed,
    headers_of,
    message_of,
    next_due_us,
    secret_of,
)
from tollkeeper.errors import Conflict, NotFound, Unavailable
from tollkeeper.ports import LedgerReader, WebhookSender, WebhookStore

POLL_S: Final = 1.0
"""Most seconds that a retry is late; new crossings are found at once."""
PAUSE_S: Final = 0.2
"""Least time between two comparisons, at any traffic: it bounds their cost."""
SENDERS: Final = 4
"""Messages on their way at a time, one of each account: a receiver that hangs holds up its own account only."""
CLOSE_S: Final = 15.0
LOOK_BACK_US: Final = 7 * 86_400 * US_PER_S
"""A period that ended longer ago is not looked at any more, whatever late events come into it."""
KEEP_US: Final = 30 * 86_400 * US_PER_S
"""How long after its period a message is kept; more than `LOOK_BACK_US`, or its message could be sent again."""
_KNOWN_MAX: Final = 100_000

log = logging.getLogger("tollkeeper.webhooks")

_SentAt = tuple[str, CounterAt]
"""The id of a webhook, and the counter that a message to it was about."""


class Webhooks:
    """
    Any thread may call; `charged` is the commit thread's, and returns at once.

    Args:
        root: The webhooks' secrets are made from it; at least 32 unpredictable bytes.
        vendor_headers: Returns the headers that profiles add to a message, of its body and the webhook's secret.
    """

    def __init__(
        self,
        store: WebhookStore,
        sender: WebhookSender,
        ledger: LedgerReader,
        directory: Directory,
        manage: Manage,
        clock: Clock,
        *,
        root: bytes,
        vendor_headers: Callable[[bytes, str], Mapping[str, str]],
    ) -> None:
        self._store = store
        self._sender = sender
        self._ledger = ledger
        self._directory = directory
        self._manage = manage
        self._clock = clock
        self._root = root
        self._vendor_headers = vendor_headers
        self._hooks: dict[str, list[StoredWebhook]] = {}
        """Account → its webhooks; replaced whole."""
        self._scopes: dict[str, Mapping[str, WantedScope]] = {}
        self._known: dict[_SentAt, set[int]] = {}
        """Thresholds that the store has: spares asking it again and again."""
        self._lock = threading.Lock()
        self._comparing = threading.Lock()
        self._marked: set[CounterAt] = set()
        self._accounts: set[str] = set()
        """Accounts all of whose counters are to be compared."""
        self._reload = True
        self._disabling = True
        self._busy: set[str] = set()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._senders: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Begin where the last process ended. Raises `Unavailable`."""
        self._read_hooks()
        if self._hooks:
            self._run_thread()

    def secret(self, account_id: str, webhook_id: str) -> str:
        """
        Return the secret of a webhook. It is shown when the webhook is created, and not afterwards.

        Raises:
            NotFound: The account has no such webhook.
        """
        hook = self._store.hook(account_id, webhook_id)
        if hook is None:
            raise NotFound("there is no such entry among the webhooks")
        return secret_of(self._root, hook)

    # -- what may cross a threshold -------------------------------------------------------------------

    def charged(self, counters: Iterable[CounterAt]) -> None:
        """Note which counters a group charged; called by the commit thread after it committed."""
        hooks = self._hooks
        if not hooks:
            return
        marked = {at for at in counters if at[0] in hooks}
        if marked:
            with self._lock:
                self._marked |= marked
            self._wake.set()

    def changed(self, account_ids: Iterable[str], *, hooks: bool = False) -> None:
        """Note that budgets of these accounts changed, or, with *hooks*, that webhooks did."""
        mine = set(account_ids) & self._hooks.keys()
        if not mine and not hooks:
            return
        with self._lock:
            self._accounts |= mine
        if hooks:
            self._reload = True
        self._run_thread()
        self._wake.set()

    def compare(self) -> None:
        """
        Store a message for each threshold that was crossed since the last call, and run its actions.

        Raises:
            Unavailable: A store failed; the next call does what this one did not.
        """
        with self._comparing:
            if self._reload:
                self._read_hooks()
            with self._lock:
                marked, self._marked = self._marked, set()
                accounts, self._accounts = self._accounts, set()
            try:
                self._compare(marked, accounts)
            except BaseException:
                with self._lock:
                    self._marked |= marked
                    self._accounts |= accounts
                raise
            if self._disabling:
                self._disable_keys()

    def _read_hooks(self) -> None:
        # Lowered first, as it may be raised meanwhile.
        self._reload = False
        try:
            self._store.purge(self._clock.now_us() - KEEP_US)
            found = self._store.hooks()
        except BaseException:
            self._reload = True
            raise
        hooks: dict[str, list[StoredWebhook]] = {}
        for hook in found:
            hooks.setdefault(hook.entry.account, []).append(hook)
        # First they are watched, then all is compared: what is committed in between is in both, not in neither.
        self._hooks = hooks
        with self._lock:
            self._accounts |= hooks.keys()
        self._known.clear()
        self._scopes.clear()

    def _compare(self, marked: set[CounterAt], accounts: set[str]) -> None:
        now_us = self._clock.now_us()
        looked_at = set(marked)
        for account_id in accounts:
            scopes = self._scopes[account_id] = self._directory.wanted_scopes(account_id)
            rows = self._ledger.counter_rows(account_id)
            looked_at |= {
                (account_id, counter, start_us)
                for counter, start_us in rows
                if scope_counter_of(counter) in scopes
            }
        messages = [message for at in sorted(looked_at) for message in self._messages(at, now_us)]
        if not messages:
            return
        new = self._store.add(messages)
        if len(self._known) > _KNOWN_MAX:
            self._known.clear()
        for message in messages:
            at = (message.account_id, message.counter_id, message.period_start_us)
            self._known.setdefault((message.webhook_id, at), set()).add(message.threshold)
        for message in new:
            self._disabling = self._disabling or message.disables_keys
            self._log_new(message)

    def _messages(self, at: CounterAt, now_us: int) -> Iterable[WebhookMessage]:
        """Yield a message for each threshold that the counter *at* has crossed and that has no message yet."""
        account_id, counter_id, start_us = at
        if account_id not in self._scopes:
            self._scopes[account_id] = self._directory.wanted_scopes(account_id)
        scope, _ = self._scopes[account_id].get(scope_counter_of(counter_id), (None, None))
        if scope is None or scope.amount is None or (counter_id == scope.counter_id) == bool(scope.by):
            return
        own = amount = scope.amount
        # Of a budget per value, that of each value crosses its thresholds for itself.
        scope = scope._replace(counter_id=counter_id)
        period_us = self._directory.period_us(scope, start_us)
        if period_us is None or period_us[0] != start_us or period_us[1] <= now_us - LOOK_BACK_US:
            # Counted by periods that the budget no longer has, or past.
            return
        used: int | None = None
        for hook in self._hooks.get(account_id, ()):
            entry = hook.entry
            if entry.project not in (None, scope.project_id) or period_us[1] <= hook.created_at_us:
                continue
            known = self._known.get((entry.id, at), set())
            new = [threshold for threshold in entry.thresholds if threshold not in known]
            if not new:
                continue
            if used is None:
                used, _ = self._ledger.counter(*at)
                top_ups, charged, _ = self._directory.top_ups(scope)
                # Thresholds are of the amount in force.
                amount = own + top_ups.added(start_us, own, charged)
                scope = scope._replace(amount=amount)
            for threshold in crossed(used, amount, new):
                yield message_of(hook, scope, period_us, used, threshold, now_us)

    def _log_new(self, message: WebhookMessage) -> None:
        extra = {
            "account": message.account_id,
            "webhook": message.webhook_id,
            "counter": message.counter_id,
            "threshold": message.threshold,
        }
        log.info("tollkeeper.webhook.threshold_crossed", extra=extra)
        notify_at = next(
            (
                hook.entry.actions.notify_admins
                for hook in self._hooks.get(message.account_id, ())
                if hook.entry.id == message.webhook_id
            ),
            None,
        )
        if notify_at is not None and message.threshold >= notify_at:
            log.warning("tollkeeper.webhook.notify_admins", extra=extra)

    def _disable_keys(self) -> None:
        # Lowered first, as it may be raised meanwhile.
        self._disabling = False
        try:
            for message in self._store.disabling():
                for key_id in self._counted_keys(message.account_id, message.counter_id):
                    try:
                        self._manage.set_key_state(message.account_id, key_id, "inactive")
                    except (Conflict, NotFound):
                        # Revoked or expired in this moment: it is out of use already.
                        continue
                    log.warning(
                        "tollkeeper.webhook.key_disabled",
                        extra={"account": message.account_id, "key": key_id, "webhook": message.webhook_id},
                    )
                self._store.disabled(message.id)
        except BaseException:
            self._disabling = True
            raise

    def _counted_keys(self, account_id: str, counter_id: str) -> list[str]:
        """
        Return the consumption keys in use whose events the budget counts.

        Keys that a customer made inactive are among them, or it would activate them afterwards.
        """
        scope, key_ids = self._directory.wanted_scopes(account_id).get(counter_id, (None, None))
        if scope is None:
            return []
        now_us = self._clock.now_us()
        return [
            stored.entry.id
            for stored in self._directory.keys_of(account_id)
            if stored.entry.is_metered
            and (
                stored.state_at(now_us) == "active"
                or (stored.state_at(now_us) == "inactive" and stored.state_by == "customer")
            )
            and (key_ids is None or stored.entry.id in key_ids)
            and scope.project_id in (None, stored.entry.project or "")
        ]

    # -- sending --------------------------------------------------------------------------------------

    def claim(self) -> list[WebhookMessage]:
        """
        Return what is to be sent now, at most one message per account; each is `deliver`ed before its next.

        Raises:
            Unavailable: The store failed.
        """
        with self._lock:
            busy = set(self._busy)
        if len(busy) >= SENDERS:
            return []
        claimed: list[WebhookMessage] = []
        for message in self._store.due(self._clock.now_us(), limit=100, but_accounts=busy):
            if len(busy) < SENDERS and message.account_id not in busy:
                busy.add(message.account_id)
                claimed.append(message)
        with self._lock:
            self._busy.update(message.account_id for message in claimed)
        return claimed

    def deliver(self, message: WebhookMessage) -> None:
        """Send a claimed message once, and store what came of it. Raises nothing."""
        try:
            self._deliver(message)
        except Unavailable as exc:
            # It is due still, and is sent again when the store is back.
            log.warning("tollkeeper.webhook.unavailable", extra={"reason": str(exc)})
        except Exception:
            log.exception("tollkeeper.webhook.defect", extra={"message_id": message.id})
        finally:
            with self._lock:
                self._busy.discard(message.account_id)
            self._wake.set()

    def _deliver(self, message: WebhookMessage) -> None:
        hook = self._store.hook(message.account_id, message.webhook_id)
        if hook is None:
            # Deleted meanwhile: its messages go with the next purge.
            self._store.ended(message.id, "failed", attempts=message.attempts)
            return
        body = message.body.encode()
        secret = secret_of(self._root, hook)
        signed = headers_of(message.id, body, secret, self._clock.now_us())
        headers = {**self._vendor_headers(body, secret), **signed}
        sent = self._sender.send(hook.entry.url, headers, body)
        if sent.outcome == "failed" and self._closing.is_set():
            # The end of this process is not the receiver's fault: the next one tries at once.
            return
        attempts = message.attempts + 1
        extra = {
            "account": message.account_id,
            "webhook": message.webhook_id,
            "message_id": message.id,
            "attempt": attempts,
            "status": sent.status,
        }
        if sent.outcome == "delivered":
            self._store.ended(message.id, "delivered", attempts=attempts)
            log.info("tollkeeper.webhook.delivered", extra=extra)
            return
        due_at_us = next_due_us(attempts, self._clock.now_us())
        if due_at_us is None:
            self._store.ended(message.id, "failed", attempts=attempts)
        else:
            self._store.postpone(message.id, attempts=attempts, due_at_us=due_at_us)
        final = {"reason": sent.reason, "final": due_at_us is None}
        log.warning("tollkeeper.webhook.failed", extra=extra | final)

    # -- the thread -----------------------------------------------------------------------------------

    def purge(self) -> None:
        """Remove messages of periods that ended long ago. Raises `Unavailable`."""
        if self._hooks:
            self._store.purge(self._clock.now_us() - KEEP_US)

    def close(self) -> None:
        """Stop; what is due stays so. A repeat changes nothing."""
        self._closing.set()
        self._wake.set()
        self._sender.close()
        with self._lock:
            thread, senders = self._thread, self._senders
        if thread is not None:
            thread.join(CLOSE_S)
        if senders is not None:
            senders.shutdown(cancel_futures=True)

    def _run_thread(self) -> None:
        with self._lock:
            if self._thread is not None or self._closing.is_set():
                return
            if self._senders is None:
                self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="tollkeeper-webhook")
            self._thread = threading.Thread(
                target=self._run, args=(self._senders,), name="tollkeeper-webhooks", daemon=True
            )
            self._thread.start()

    def _run(self, senders: ThreadPoolExecutor) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self.compare()
                for message in self.claim():
                    senders.submit(self.deliver, message)
            except Unavailable as exc:
                log.warning("tollkeeper.webhooks.unavailable", extra={"reason": str(exc)})
            except Exception:
                # Whatever it is, the other accounts must go on hearing of theirs.
                log.exception("tollkeeper.webhooks.failed")
            if self._closing.wait(PAUSE_S):
                return
            with self._lock:
                if not self._hooks and not self._reload:
                    self._thread = None
                    return
            self._wake.wait(POLL_S)
