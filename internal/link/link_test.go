package link

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// Everything that a replica asks of a node arrives, and errors come back with their kind.
func TestCallsToANode(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	m.node.held["i1"] = sandbox("i1", "n1")

	node, err := r.Node(t.Context(), "n1")
	f.must(err)
	deadline := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	sb, err := node.SetDeadline(t.Context(), "i1", deadline, true)
	f.must(err)
	if sb.ID != "i1" || !sb.Deadline.Equal(deadline) {
		t.Fatalf("got %+v", sb)
	}
	sb, err = node.SetNetwork(t.Context(), "i1", tartarus.Network{Allow: []string{"1.1.1.1"}})
	f.must(err)
	if len(sb.Network.Allow) != 1 {
		t.Fatalf("got %+v", sb.Network)
	}
	logs, err := node.Logs(t.Context(), "i1", olympus.LogQuery{Search: "x", Level: "warn"})
	f.must(err)
	if len(logs) != 1 || logs[0].Message != "x" || logs[0].Level != "warn" {
		t.Fatalf("got %+v", logs)
	}
	samples, err := node.Samples(t.Context(), "i1", deadline, time.Time{})
	f.must(err)
	if len(samples) != 1 || !samples[0].Time.Equal(deadline) {
		t.Fatalf("got %+v", samples)
	}
	_, err = node.(olympus.Pauser).Pause(t.Context(), "i1", tartarus.PauseHow{Healthy: true})
	f.wantKind(err, tartarus.Conflict)
	if e, _ := errors.AsType[*tartarus.Error](err); e.Code != "busy" || e.RetryAfter != time.Second {
		t.Fatalf("got %+v", e)
	}
	snaps := node.(olympus.Snapshotter)
	snap, err := snaps.Snapshot(t.Context(), "i1", tartarus.SnapshotHow{Names: []string{"a:b"}, Disk: true})
	f.must(err)
	if snap.SandboxID != "i1" || !snap.Disk || len(snap.Names) != 1 {
		t.Fatalf("got %+v", snap)
	}
	all, err := snaps.Snapshots(t.Context(), tartarus.SnapshotQuery{Tenant: "acme", Name: "a"})
	f.must(err)
	if len(all) != 1 || all[0].Tenant != "acme" || all[0].Names[0] != "a" {
		t.Fatalf("got %+v", all)
	}
	_, err = snaps.VerifySnapshot(t.Context(), "snap")
	f.wantKind(err, tartarus.Corrupt)
	f.must(snaps.RemoveSnapshot(t.Context(), "snap"))
	f.wantKind(snaps.RemoveSnapshot(t.Context(), "gone"), tartarus.NotFound)
	f.must(node.Stop(t.Context(), "i1", tartarus.ReasonUser))
	f.wantKind(node.Stop(t.Context(), "i1", tartarus.ReasonUser), tartarus.NotFound)

	_, err = r.Node(t.Context(), "nobody")
	f.wantKind(err, tartarus.Unavailable)
}

// A tunnel carries bytes both ways and its end, through the node's own listener, through the session, and through the session when the
// listener cannot be reached.
func TestTunnels(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	for name, tc := range map[string]struct {
		own    bool
		change func(*UplinkConfig)
	}{
		"own listener":                 {own: true},
		"session":                      {},
		"listener that nobody reaches": {change: func(c *UplinkConfig) { c.Address = dead.Addr().String() }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			r := f.replica("a", nil)
			m := f.join(r, "n1", tc.own, tc.change)
			f.connected(r, "n1")
			m.node.held["i1"] = sandbox("i1", "n1")
			node, err := r.Node(t.Context(), "n1")
			f.must(err)
			conn, err := node.Dial(t.Context(), "i1", 80)
			f.must(err)
			defer conn.Close()
			payload := strings.Repeat("0123456789abcdef", 1<<16) // a megabyte: more than any window
			go func() { _, _ = io.WriteString(conn, payload) }()
			got := make([]byte, len(payload))
			_ = conn.SetDeadline(time.Now().Add(longest))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != payload {
				t.Fatalf("got %d bytes back wrong, %v", len(got), err)
			}
			_, err = node.Dial(t.Context(), "i1", 81)
			f.wantKind(err, tartarus.PortClosed)
			_, err = node.Dial(t.Context(), "i2", 80)
			f.wantKind(err, tartarus.GuestGone)
		})
	}
}

// A node's own listener takes replicas and nobody else.
func TestOwnListenerIsForReplicas(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	one := f.join(r, "n1", true, nil)
	two := f.join(r, "n2", false, nil)
	f.connected(r, "n1")
	other := two.id.dialConfig()
	other.ServerName, other.NextProtos = "n1"+nodeSuffix, []string{protoJoin}
	conn, err := tls.Dial("tcp", one.cfg.Address, other)
	f.must(err)
	defer conn.Close()
	_, err = askTunnel(conn, "i1", 80)
	f.wantKind(err, tartarus.Forbidden)

	bare, err := tls.Dial("tcp", one.cfg.Address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protoJoin}})
	if err == nil {
		defer bare.Close()
		_, err = askTunnel(bare, "i1", 80)
	}
	if err == nil || tartarus.Is(err, tartarus.Forbidden) {
		t.Fatalf("somebody without a certificate got as far as %v", err)
	}
}

// Work crosses: leased under this node's name, completed once, and a second report of the same success is no conflict.
func TestWork(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	q := f.db.Queue()
	_, err := q.Enqueue(t.Context(), acheron.Job{ID: "j1", Tenant: "acme", Node: "n1", Kind: acheron.Create, Payload: []byte("what"), MaxAttempts: 1, Deadline: time.Now().Add(time.Hour)})
	f.must(err)
	asked := time.Now()
	leases, err := m.Lease(t.Context(), "n1", 4, 10*time.Second)
	f.must(err)
	if len(leases) != 1 || string(leases[0].Job.Payload) != "what" {
		t.Fatalf("got %+v", leases)
	}
	l := leases[0]
	if early, late := asked.Add(5*time.Second), time.Now().Add(acheron.Trust(10*time.Second)); l.Until.Before(early) || l.Until.After(late) {
		t.Fatalf("trusted until %s, want between %s and %s", l.Until, early, late)
	}
	f.must(m.Renew(t.Context(), l, 10*time.Second))
	f.must(m.Complete(t.Context(), l, []byte("done")))
	f.must(m.Complete(t.Context(), l, []byte("done")))
	j, err := q.Job(t.Context(), "j1")
	f.must(err)
	if j.State != acheron.Done || string(j.Result) != "done" {
		t.Fatalf("got %+v", j)
	}
}

// A node can neither end another's work nor speak of another's sandboxes.
func TestANodeSpeaksForItselfOnly(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	one, two := f.join(r, "n1", false, nil), f.join(r, "n2", false, nil)
	f.connected(r, "n1")
	f.connected(r, "n2")
	_, err := f.db.Queue().Enqueue(t.Context(), acheron.Job{ID: "j1", Tenant: "acme", Node: "n1", Kind: acheron.Create, MaxAttempts: 1, Deadline: time.Now().Add(time.Hour)})
	f.must(err)
	leases, err := one.Lease(t.Context(), "n1", 1, 10*time.Second)
	f.must(err)
	f.wantKind(two.Complete(t.Context(), leases[0], nil), tartarus.Forbidden)
	f.wantKind(two.Fail(t.Context(), leases[0], "x", false), tartarus.Forbidden)
	f.wantKind(two.Renew(t.Context(), leases[0], 10*time.Second), tartarus.Forbidden)
	forged := leases[0]
	forged.Token++
	f.wantKind(one.Complete(t.Context(), forged, nil), tartarus.Forbidden)

	f.must(one.Report(t.Context(), sandbox("i1", "n1")))
	f.wantKind(two.Report(t.Context(), sandbox("i1", "n1")), tartarus.Forbidden)
	f.must(two.Report(t.Context(), sandbox("i1", "n2"), sandbox("i2", "n2")))
	sb, err := f.db.Registry().Sandbox(t.Context(), hades.AnyTenant, "i1")
	f.must(err)
	if sb.Node != "n1" {
		t.Fatalf("node n2 took sandbox i1 over: %+v", sb)
	}
	if len(two.node.disown) != 1 || two.node.disown[0] != "i1" {
		t.Fatalf("told to let go of %v, want i1", two.node.disown)
	}
	f.wantKind(two.Heartbeat(t.Context(), hades.Node{Name: "n1"}, 10*time.Second), tartarus.Forbidden)
}

// A node finds replicas it was not told of, goes on when one is gone, and comes back to one that is back.
func TestReplicasComeAndGo(t *testing.T) {
	f := newFleet(t)
	a := f.replica("a", nil)
	b := f.replica("b", nil)
	f.must(a.keepOnce(t.Context())) // learns of b without waiting for its rhythm
	m := f.join(a, "n1", false, nil)
	f.connected(a, "n1")
	f.must(m.Heartbeat(t.Context(), hades.Node{Name: "n1"}, 10*time.Second))
	f.connected(b, "n1")
	m.node.held["i1"] = sandbox("i1", "n1")

	a.stop()
	node, err := b.Node(t.Context(), "n1")
	f.must(err)
	_, err = node.SetDeadline(t.Context(), "i1", time.Now(), false)
	f.must(err)
	f.eventually("the node speaks through the other replica", func() bool {
		return m.Heartbeat(t.Context(), hades.Node{Name: "n1"}, 10*time.Second) == nil
	})
	again := f.replicaAt("a", a.addr, nil)
	f.connected(again, "n1")
}

// A replica without a session reaches a node through the node's own listener.
func TestReplicaWithoutASession(t *testing.T) {
	f := newFleet(t)
	a := f.replica("a", nil)
	b := f.replica("b", func(c *HubConfig) { c.Advertise = "" })
	m := f.join(a, "n1", true, nil)
	f.connected(a, "n1")
	m.node.held["i1"] = sandbox("i1", "n1")
	f.must(m.Heartbeat(t.Context(), hades.Node{Name: "n1"}, time.Minute))
	node, err := b.Node(t.Context(), "n1")
	f.must(err)
	_, err = node.SetDeadline(t.Context(), "i1", time.Now(), false)
	f.must(err)
	conn, err := node.Dial(t.Context(), "i1", 80)
	f.must(err)
	conn.Close()
}

// Revisions: the one before is accepted, others are turned away with the reason.
func TestVersionSkew(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", func(c *HubConfig) { c.revision = 5 })
	for theirs, want := range map[int]string{4: "", 5: "", 3: "upgrade the node", 6: "upgrade the replicas first"} {
		err := accepts(5, theirs, "v9")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("revision %d: %v, want %q", theirs, err, want)
		}
	}
	f.join(r, "old", false, func(c *UplinkConfig) { c.revision = 4 })
	f.connected(r, "old")
	late := f.join(r, "older", false, func(c *UplinkConfig) { c.revision = 3 })
	err := late.holdSession(t.Context(), r.addr)
	f.wantKind(err, tartarus.Unsupported)
	f.wantKind(late.Heartbeat(t.Context(), hades.Node{Name: "older"}, time.Minute), tartarus.Unavailable)
}

// Join tokens: good once, for their time, for their node, in their fleet.
func TestJoinTokens(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	try := func(token, node string) error {
		_, err := joinFleet(t.Context(), r.addr, node, token, filepath.Join(t.TempDir(), "identity.pem"))
		return err
	}
	token, ends, err := r.Token("", time.Hour)
	f.must(err)
	if left := time.Until(ends); left < 59*time.Minute || left > time.Hour {
		t.Fatalf("good for %s", left)
	}
	f.must(try(token, "n1"))
	f.wantKind(try(token, "n1"), tartarus.Unauthenticated) // used
	f.wantKind(try(token, "n2"), tartarus.Unauthenticated)
	named, _, err := r.Token("n3", time.Hour)
	f.must(err)
	f.wantKind(try(named, "n4"), tartarus.Unauthenticated)
	f.must(try(named, "n3"))
	f.wantKind(try("nonsense", "n5"), tartarus.Unauthenticated)
	broken, _, err := r.Token("", time.Hour)
	f.must(err)
	f.wantKind(try(broken[:len(broken)-4]+"AAAA", "n5"), tartarus.Unauthenticated)
	past := r.auth.Load().token("", time.Now().Add(-time.Second))
	f.wantKind(try(past, "n5"), tartarus.Unauthenticated)
	f.wantKind(try(broken, "N/5"), tartarus.Invalid)

	// A name that lives is not given away without saying so.
	f.must(f.db.Registry().PutNode(t.Context(), hades.Node{Name: "n1"}, time.Minute))
	anybody, _, err := r.Token("", time.Hour)
	f.must(err)
	f.wantKind(try(anybody, "n1"), tartarus.Conflict)
	f.must(try(anybody, "n5")) // and the refusal did not spend it

	// Somebody who stands in for the replica is found out before the token is sent.
	stranger := newFleet(t).replica("b", nil)
	fresh, _, err := r.Token("", time.Hour)
	f.must(err)
	_, err = joinFleet(t.Context(), stranger.addr, "n6", fresh, filepath.Join(t.TempDir(), "identity.pem"))
	f.wantKind(err, tartarus.Unavailable)
	f.must(try(fresh, "n6"))

	for _, life := range []time.Duration{0, -1, 25 * time.Hour} {
		_, _, err := r.Token("", life)
		f.wantKind(err, tartarus.Invalid)
	}
}

// A certificate is renewed over a session, is used from then on, and survives a restart.
func TestRotation(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	old := m.id.current().Leaf
	if m.id.stale(time.Now()) || !m.id.stale(old.NotAfter.Add(-NodeLife/4)) {
		t.Fatal("renewed at the wrong time")
	}
	f.must(m.renewIdentity(t.Context()))
	fresh := m.id.current().Leaf
	if fresh.SerialNumber.Cmp(old.SerialNumber) == 0 {
		t.Fatal("the certificate is the old one")
	}
	read, err := loadIdentity(m.identityFile(), "n1")
	f.must(err)
	if read.current().Leaf.SerialNumber.Cmp(fresh.SerialNumber) != 0 {
		t.Fatal("the file holds another certificate")
	}
	if info, err := os.Stat(m.identityFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key's file: %v, %v", info.Mode(), err)
	}
	_, err = loadIdentity(m.identityFile(), "n2")
	f.wantKind(err, tartarus.Conflict)
}

// A removed node loses its sessions on all replicas and cannot come back without a token.
func TestBan(t *testing.T) {
	f := newFleet(t)
	a, b := f.replica("a", nil), f.replica("b", nil)
	f.must(a.keepOnce(t.Context()))
	m := f.join(a, "n1", false, func(c *UplinkConfig) { c.Replicas = append(c.Replicas, b.addr) })
	f.connected(a, "n1")
	f.connected(b, "n1")
	// Within the skew of clocks a certificate counts as made after: pretend it is an hour old.
	for _, h := range []*replica{a, b} {
		h.mu.Lock()
		h.sessions["n1"].born = time.Now().Add(-time.Hour)
		h.mu.Unlock()
	}
	f.must(a.Ban(t.Context(), "n1"))
	f.must(b.keepOnce(t.Context()))
	f.wantKind(a.banned(t.Context(), "n1", time.Now().Add(-time.Hour)), tartarus.Forbidden)
	f.must(a.banned(t.Context(), "n1", time.Now()))
	f.must(a.banned(t.Context(), "n2", time.Now().Add(-time.Hour)))
	f.eventually("it is shut out", func() bool { return len(a.Connected())+len(b.Connected()) == 0 })

	// With a new token it is let in again, by itself. Certificates count seconds: one made in the second of the ban is the old one.
	time.Sleep(1100 * time.Millisecond)
	token, _, err := a.Token("n1", time.Minute)
	f.must(err)
	old := m.id.current().Leaf
	f.must(os.WriteFile(m.cfg.TokenFile, []byte(token+"\n"), 0o600))
	f.connected(a, "n1")
	f.connected(b, "n1")
	read, err := loadIdentity(m.identityFile(), "n1")
	f.must(err)
	if fresh := m.id.current().Leaf; fresh.Equal(old) || !read.current().Leaf.Equal(fresh) {
		t.Error("it shows its old certificate, or has not kept the new one")
	}
	f.must(a.banned(t.Context(), "n1", m.id.current().Leaf.NotBefore))
	m.stop()
}

// A store that lost everything gets the same authority back, and nodes are asked to report again.
func TestTheStoreLosesEverything(t *testing.T) {
	f := newFleet(t)
	file := filepath.Join(t.TempDir(), "fleet.pem")
	r := f.replica("a", func(c *HubConfig) { c.AuthorityFile = file })
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	f.must(m.Heartbeat(t.Context(), hades.Node{Name: "n1"}, time.Minute))
	addr := r.addr
	r.stop()

	empty := newFleet(t)
	again := empty.replicaAt("a", addr, func(c *HubConfig) { c.AuthorityFile = file })
	empty.connected(again, "n1")
	f.eventually("the node is asked to report again", func() bool {
		_ = m.Heartbeat(t.Context(), hades.Node{Name: "n1"}, time.Minute)
		m.node.mu.Lock()
		defer m.node.mu.Unlock()
		return m.node.refills > 0
	})
	nodes, err := empty.db.Registry().Nodes(t.Context())
	f.must(err)
	if len(nodes) != 1 || nodes[0].Name != "n1" {
		t.Fatalf("registered: %+v", nodes)
	}
}

// A node that was away is not given what would bring back a sandbox that lives on another node by now; what is its own, it gets.
func TestNobodyResumesWhatLivesElsewhere(t *testing.T) {
	f := newFleet(t)
	r := f.replica("a", nil)
	m := f.join(r, "n1", false, nil)
	f.connected(r, "n1")
	for id, node := range map[string]string{"itaken": "n2", "imine": "n1"} {
		_, err := f.db.Registry().PutSandbox(t.Context(), sandbox(id, node))
		f.must(err)
	}
	for _, id := range []string{"itaken", "imine", "iunknown"} {
		payload, err := json.Marshal(tartarus.Resume{ID: id, Tenant: "acme"})
		f.must(err)
		_, err = f.db.Queue().Enqueue(t.Context(), acheron.Job{ID: "j" + id, Tenant: "acme", Node: "n1", Kind: acheron.Resume, Payload: payload, MaxAttempts: 3})
		f.must(err)
	}
	got := map[string]bool{}
	for len(got) < 2 {
		leases, err := m.Lease(t.Context(), "n1", 4, 10*time.Second)
		f.must(err)
		for _, l := range leases {
			got[l.Job.ID] = true
		}
	}
	if got["jitaken"] || !got["jimine"] || !got["jiunknown"] { // of one that the registry has lost, the node knows best
		t.Errorf("leased: %v", got)
	}
	j, err := f.db.Queue().Await(t.Context(), "jitaken")
	f.must(err)
	if why := acheron.FromReason(j.Reason); j.State != acheron.Dead || why.Kind != tartarus.Conflict || !strings.Contains(why.Message, "lives on node n2") {
		t.Errorf("it is %s: %s", j.State, j.Reason)
	}
}
