package network

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// A helper is another process with a pool, which ends only by SIGKILL.
const helperEnv = "TARTARUS_NETWORK_TEST_HELPER"

type helperOrder struct {
	Config Config
	Lend   int // slots to acquire
	TAPs   int
	Rules  Rules
}

func helper() int {
	var order helperOrder
	if err := json.Unmarshal([]byte(os.Getenv(helperEnv)), &order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := order.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Stdin.Read(make([]byte, 1)) // until the test is gone, at the latest
	runtime.KeepAlive(p)           // a pool that nobody holds any more is collected, and its lock with it
	return 0
}

func (o helperOrder) run() (*Pool, error) {
	ctx := context.Background()
	p, err := Open(ctx, o.Config)
	if err != nil {
		return nil, err
	}
	var records []Record
	for i := range o.Lend + o.TAPs {
		acquire := p.Acquire
		if i >= o.Lend {
			acquire = p.AcquireTAP
		}
		s, err := acquire(ctx)
		if err != nil {
			return nil, err
		}
		if err := p.SetRules(ctx, s, o.Rules); err != nil {
			return nil, err
		}
		records = append(records, s.Record())
	}
	p.refill(ctx)
	return p, json.NewEncoder(os.Stdout).Encode(records)
}

// startHelper returns what the helper lent, and a function that kills it.
func startHelper(t *testing.T, o helperOrder) (records []Record, kill func()) {
	t.Helper()
	order, err := json.Marshal(o)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+string(order))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			cmd.Wait()
			in.Close()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("helper said nothing: %v", err)
	}
	must(t, json.Unmarshal(line, &records))
	return records, kill
}

func names(l []vmm.Leftover) string {
	var out []string
	for _, x := range l {
		out = append(out, x.Kind+" "+x.Name)
	}
	return strings.Join(out, ", ")
}

// TestCrash kills a process that has lent and ready slots, and has a new one take over.
func TestCrash(t *testing.T) {
	w := newWorld(t)
	w.serve(w.path, ":80")
	c := Config{StateDir: t.TempDir(), RunDir: runDir(t), Slots: 2}
	deny := Rules{Open: true, Deny: prefixes("203.0.113.11/32")}
	records, kill := startHelper(t, helperOrder{Config: c, Lend: 4, TAPs: 1, Rules: deny})
	if _, err := Open(t.Context(), c); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("a second pool on one state folder: %v", err)
	}
	kill()
	path := c.RunDir + "/netns/" + records[0].Name
	if _, _, err := w.dial(path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("a sandbox lost its network with its agent: %v", err)
	}
	if _, _, err := w.dial(path, "203.0.113.11:80", quiet); err == nil {
		t.Error("rules ended with the agent")
	}

	c.Slots = 1
	p := openPool(t, c)
	adopted, err := p.Adopt(t.Context(), records[0], deny)
	must(t, err)
	if adopted.Name() != records[0].Name || *adopted.Interface() == (vmm.Interface{}) {
		t.Errorf("adopted %+v", adopted)
	}
	checkDressed(t, w, adopted)
	if _, err := p.Adopt(t.Context(), records[0], deny); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("adopted twice: %v", err)
	}
	tap, err := p.Adopt(t.Context(), records[4], Rules{})
	must(t, err)
	if tap.Interface().Device != tapLink {
		t.Errorf("adopted TAP slot: %+v", tap.Interface())
	}
	forged := records[1]
	forged.Inode++
	if _, err := p.Adopt(t.Context(), forged, deny); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("another namespace under the recorded name: %v", err)
	}
	for _, name := range []string{"tart0x400", "tart99x1", "eth0", "../../etc", ""} {
		if _, err := p.Adopt(t.Context(), Record{Name: name, Kind: Veth}, deny); !tartarus.Is(err, tartarus.NotFound) {
			t.Errorf("adopt %q: %v", name, err)
		}
	}
	must(t, p.host.tearDown(records[2].Name)) // as if somebody had removed it by hand
	if _, err := p.Adopt(t.Context(), records[2], deny); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("adopt what is gone: %v", err)
	}
	fresh, err := p.Acquire(t.Context())
	must(t, err)
	for _, r := range records {
		if r.Name == fresh.Name() {
			t.Errorf("%s was lent while an earlier sandbox may live in it", r.Name)
		}
	}
	checkSweep(t, p, records)
	if _, _, err := w.dial(adopted.path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("the adopted slot does not work: %v", err)
	}
	if _, _, err := w.dial(adopted.path, "203.0.113.11:80", quiet); err == nil {
		t.Error("the adopted slot has no rules")
	}
	releaseAll(t, p, adopted, tap, fresh)
}

func checkSweep(t *testing.T, p *Pool, records []Record) {
	t.Helper()
	owned := func(name string) bool { return name == records[3].Name } // not adopted yet, but its sandbox lives
	found, err := p.Leftovers(t.Context(), owned, false)
	must(t, err)
	// The two that were ready, the refused one, and the rules of the one whose link is gone.
	if len(found) != 3*3+1 {
		t.Errorf("leftovers: %s", names(found))
	}
	again, err := p.Leftovers(t.Context(), owned, true)
	must(t, err)
	if !slices.Equal(found, again) {
		t.Errorf("removed %s, listed %s", names(again), names(found))
	}
	if none, err := p.Leftovers(t.Context(), owned, true); err != nil || len(none) > 0 {
		t.Errorf("left after removal: %s, %v", names(none), err)
	}
	last, err := p.Leftovers(t.Context(), nil, true)
	must(t, err)
	if len(last) != 3 || last[0].Name != records[3].Name {
		t.Errorf("unowned: %s", names(last))
	}
}

// TestClosedLeavesHeldSlots closes a pool in order, with a sandbox still running.
func TestClosedLeavesHeldSlots(t *testing.T) {
	w := newWorld(t)
	w.serve(w.path, ":80")
	c := Config{StateDir: t.TempDir(), RunDir: runDir(t), Slots: 2}
	p := openPool(t, c)
	p.refill(t.Context())
	s, err := p.Acquire(t.Context())
	must(t, err)
	must(t, p.SetRules(t.Context(), s, Rules{Open: true}))
	realm := p.realms[0].number
	must(t, p.Close(t.Context()))
	if _, err := p.Acquire(t.Context()); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("acquire from a closed pool: %v", err)
	}
	if _, _, err := w.dial(s.path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("a held slot ended with the pool: %v", err)
	}
	next := openPool(t, c)
	if next.realms[0].number != realm {
		t.Errorf("realm %d became %d", realm, next.realms[0].number)
	}
	if len(next.foreign) != 1 {
		t.Errorf("found %v", next.foreign)
	}
	got, err := next.Adopt(t.Context(), s.Record(), Rules{Open: true})
	must(t, err)
	must(t, next.Release(t.Context(), got))
}

// TestTwoPools has three processes share the host, one of which dies.
func TestTwoPools(t *testing.T) {
	w := newWorld(t)
	w.serve(w.path, ":80")
	dir := runDir(t)
	a := openPool(t, Config{RunDir: dir})
	sa, err := a.Acquire(t.Context())
	must(t, err)
	must(t, a.SetRules(t.Context(), sa, Rules{Open: true}))
	durable := Config{RunDir: dir, StateDir: t.TempDir()}
	fromDurable, killDurable := startHelper(t, helperOrder{Config: durable, Lend: 1, Rules: Rules{Open: true}})
	fromOnce, killOnce := startHelper(t, helperOrder{Config: Config{RunDir: dir, StateDir: t.TempDir(), Ephemeral: true}, Lend: 1, Rules: Rules{Open: true}})

	realms := map[int]bool{}
	for _, name := range []string{sa.Name(), fromDurable[0].Name, fromOnce[0].Name} {
		n, _, ok := parseName(name)
		if !ok || realms[n] {
			t.Fatalf("slot %s", name)
		}
		realms[n] = true
		if _, _, err := w.dial(dir+"/netns/"+name, "203.0.113.10:80", soon); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := realm{prefix: realmPrefix(a.cfg.Base, 1)}
	_, guest := r.pair(0)
	w.serve(dir+"/netns/"+fromDurable[0].Name, ":8080")
	if _, _, err := w.dial(sa.path, guest.String()+":8080", quiet); err == nil {
		t.Error("a slot reaches one of another pool")
	}
	if l, err := a.Leftovers(t.Context(), nil, true); err != nil || len(l) > 0 {
		t.Errorf("what living processes have counts as left over: %s, %v", names(l), err)
	}

	killDurable()
	killOnce()
	l, err := a.Leftovers(t.Context(), nil, false)
	must(t, err)
	if names(l) != fmt.Sprintf("link %[1]s, netns %[1]s, nftables %[1]s", fromOnce[0].Name) {
		t.Errorf("leftovers: %s", names(l))
	}
	b := openPool(t, Config{RunDir: dir, Ephemeral: true}) // gets the realm of the one that is gone for good
	sb, err := b.Acquire(t.Context())
	must(t, err)
	if want, _, _ := parseName(fromOnce[0].Name); b.realms[0].number != want {
		t.Errorf("realm %d is taken, %d was free", b.realms[0].number, want)
	}
	if l, err := a.Leftovers(t.Context(), nil, false); err != nil || len(l) > 0 {
		t.Errorf("left over: %s, %v", names(l), err)
	}
	must(t, os.RemoveAll(durable.StateDir))
	if l, err := Leftovers(t.Context(), Config{RunDir: dir, StateDir: t.TempDir()}, nil, true); err != nil || len(l) != 3 {
		t.Errorf("the owner's folder is gone, left over: %s, %v", names(l), err)
	}
	releaseAll(t, b, sb)
	must(t, b.Close(t.Context()))
	if _, _, err := w.dial(sa.path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("another pool's end broke this one: %v", err)
	}
	releaseAll(t, a, sa)
}

// TestRealms fills a base of two realms.
func TestRealms(t *testing.T) {
	dir := runDir(t)
	base := netip.MustParsePrefix("198.18.0.0/21")
	a := openPool(t, Config{RunDir: dir, Base: base, Ephemeral: true})
	openPool(t, Config{RunDir: dir, Base: base})
	if _, err := Open(t.Context(), Config{RunDir: dir, Base: base, StateDir: t.TempDir()}); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("third realm of two: %v", err)
	}
	must(t, a.Close(t.Context()))
	c := openPool(t, Config{RunDir: dir, Base: base})
	if c.realms[0].number != 0 {
		t.Errorf("realm %d", c.realms[0].number)
	}
	if _, err := Open(t.Context(), Config{RunDir: dir, StateDir: "relative"}); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("relative state folder: %v", err)
	}
	// Another base that overlaps must stay clear of living realms.
	d := openPool(t, Config{RunDir: dir, Base: netip.MustParsePrefix("198.18.0.0/20")})
	if d.realms[0].number != 2 {
		t.Errorf("realm %d of a larger base", d.realms[0].number)
	}
}

// TestFlushedRules has somebody flush the host's rules, as the reload of a distribution's firewall does.
func TestFlushedRules(t *testing.T) {
	w := newWorld(t)
	w.serve(w.path, ":80")
	p := openPool(t, Config{})
	s, err := p.Acquire(t.Context())
	must(t, err)
	defer releaseAll(t, p, s)
	rules := Rules{Open: true, Deny: prefixes("203.0.113.11/32")}
	must(t, p.SetRules(t.Context(), s, rules))
	flush := func() {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	flush() // nobody watches yet: the next change notices
	must(t, p.SetRules(t.Context(), s, rules))
	if _, _, err := w.dial(s.path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("after a change: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	defer func() { stop(); must(t, <-ran) }()
	eventually(t, "Run has filled the pool", func() bool { _, n := p.missing(); return n == 0 })
	flush()
	eventually(t, "the rules are back", func() bool { _, err := p.Counters(t.Context(), s); return err == nil })
	if _, _, err := w.dial(s.path, "203.0.113.10:80", soon); err != nil {
		t.Errorf("after healing: %v", err)
	}
	if _, _, err := w.dial(s.path, "203.0.113.11:80", quiet); err == nil {
		t.Error("the slot's own rules are not back")
	}
}

// TestChangedBase has somebody take a single rule away, and a build with rules of another shape use the host before this one.
func TestChangedBase(t *testing.T) {
	newWorld(t)
	nft := func(args ...string) {
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %s: %v", args, out, err)
		}
	}
	p := openPool(t, Config{})
	if there, err := p.fw.baseThere(); err != nil || there != p.fw.version {
		t.Errorf("base %q, want %q: %v", there, p.fw.version, err)
	}
	nft("flush", "chain", "inet", tableName, "guard")
	if there, err := p.fw.baseThere(); err != nil || there != "" {
		t.Errorf("a chain is empty and the base counts as %q: %v", there, err)
	}
	must(t, p.heal(t.Context()))
	if there, err := p.fw.baseThere(); err != nil || there != p.fw.version {
		t.Errorf("healed to %q: %v", there, err)
	}
	must(t, p.Close(t.Context()))

	nft("add", "table", "inet", tableName)
	nft("add", "map", "inet", tableName, mapDNS, "{ type ifname : inet_service; }")
	nft("add", "chain", "inet", tableName, "input", "{ type filter hook input priority 0; }")
	nft("add", "rule", "inet", tableName, "input", "accept", "comment", `"tartarus 000000000000 of 1 rules"`)
	if there, err := p.fw.baseThere(); err != nil || there == "" || there == p.fw.version {
		t.Errorf("another build's base counts as %q: %v", there, err)
	}
	next := openPool(t, Config{})
	if there, err := next.fw.baseThere(); err != nil || there != next.fw.version {
		t.Errorf("opened on %q: %v", there, err)
	}
	s, err := next.Acquire(t.Context())
	must(t, err)
	must(t, next.SetRules(t.Context(), s, Rules{Open: true}))
	must(t, next.Release(t.Context(), s))
}
