"""The watch in a whole fleet: an audit log that was cut, one trace from publication to commit."""

from __future__ import annotations

from pathlib import Path

from worlds.bundles import make_bundle
from worlds.fleets import MemoryFleet, wait_for

from kasmina_edge.fleet.monitor import fleet_alerts
from kasmina_edge.logs import publication_trace
from kasmina_edge.safety.audit import AuditLog, head_path, tail, verify
from kasmina_edge.updates.trust import TrustStore


def kinds(fleet: MemoryFleet, severity: str) -> set[str]:
    found = fleet_alerts(fleet.office.store().devices(), now=fleet.clock())
    return {alert.kind for alert in found if alert.severity == severity}


def test_one_trace_from_publication_to_commit(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        fleet.enroll("cam-1")
        fleet.start("cam-1")
        host = make_bundle()
        fleet.publish_host(host)
        report = fleet.wait_reported("cam-1", "committed")
        assert report.digest is not None and report.release is not None
        trace_id = publication_trace(report.digest, report.release)
        assert report.trace_id == trace_id
        published = [e for e in tail(fleet.office.folder / "audit.log", 50) if e.event == "published"]
        assert [e.fields.get("trace_id") for e in published] == [trace_id]
        entries = tail(fleet.data("cam-1") / "audit.log", 50)
        committed = [e for e in entries if e.event == "committed"]
        assert committed and all(e.fields.get("trace_id") == trace_id for e in committed)
        assert "trace_id" not in next(e for e in entries if e.event == "agent_started").fields


def test_a_device_whose_audit_log_was_cut_is_a_critical_alert_that_stays(tmp_path: Path) -> None:
    with MemoryFleet(tmp_path) as fleet:
        data = fleet.enroll("cam-1")
        fleet.start("cam-1")
        fleet.publish_host(make_bundle())
        fleet.wait_reported("cam-1", "committed")
        fleet.stop("cam-1")
        head = AuditLog(data / "audit.log").head()
        assert head is not None and TrustStore(data / "trust", clock=fleet.clock).audit_anchor() == head
        assert _told(fleet) > 1, "what the controller was told lies behind the cut that follows"
        assert kinds(fleet, "critical") == set()

        first = (data / "audit.log").read_bytes().splitlines(keepends=True)[0]
        (data / "audit.log").write_bytes(first)
        head_path(data / "audit.log").unlink()
        fleet.start("cam-1")
        wait_for(lambda: "audit_regress" in kinds(fleet, "critical"), "the alert")
        fleet.stop("cam-1")
        assert not verify(data / "audit.log", remembered=head).ok
        assert fleet.office.store().acknowledge("cam-1") == ("audit_regress",)
        assert "audit_regress" not in kinds(fleet, "critical")


def _told(fleet: MemoryFleet) -> int:
    view = fleet.view("cam-1")
    return (view.reported.audit_seq or 0) if view and view.reported else 0
