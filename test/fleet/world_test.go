// Package fleet runs a fleet of the built program: replicas of the control plane over a real Redis, and nodes in network namespaces of
// their own, where links can be cut. Every step says what it did and saw.
package fleet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/tartarus-sandbox/tartarus/client"
)

// patience bounds everything that is waited for: a loaded machine may take that long.
const patience = 90 * time.Second

// world is the machine as the fleet sees it: a bridge in this namespace with the control plane on it, and a namespace per node.
type world struct {
	t      *testing.T
	bin    string
	dir    string
	tag    string // begins the names of everything made on this host
	subnet netip.Addr
	redis  *process
	redisP int

	replicas []*replica
	nodeEnv  []string // of every node, beside what it needs
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: nodes are network namespaces")
	}
	for _, tool := range []string{"redis-server", "ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	bin := os.Getenv("TARTARUS_BIN")
	if bin == "" {
		bin = "../../bin/tartarus"
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		t.Skipf("needs the built program (make build): %v", err)
	}
	pid := os.Getpid()
	w := &world{
		t: t, bin: bin, dir: t.TempDir(), tag: fmt.Sprintf("tf%x", pid&0xfffff),
		subnet: netip.AddrFrom4([4]byte{10, 231, byte(pid), 0}),
	}
	w.ip("link", "add", w.tag, "type", "bridge")
	t.Cleanup(func() { w.ip("link", "del", w.tag) })
	w.ip("addr", "add", w.addr(1)+"/24", "dev", w.tag)
	w.ip("link", "set", w.tag, "up")
	w.redisP = freePort(t)
	w.startRedis()
	return w
}

// say prints what was done and seen, with the time since the last step.
func (w *world) say(format string, args ...any) {
	w.t.Helper()
	w.t.Logf(format, args...)
}

func (w *world) addr(i int) string {
	a := w.subnet.As4()
	a[3] = byte(i)
	return netip.AddrFrom4(a).String()
}

func (w *world) ip(args ...string) {
	w.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// process is a program that runs until it is ended.
type process struct {
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
}

// logBuffer keeps the end of what a program says.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 256<<10 {
		l.buf.Next(128 << 10)
	}
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start runs a program. Its log is shown when the test fails.
func (w *world) start(name string, env []string, command string, args ...string) *process {
	w.t.Helper()
	p := &process{cmd: exec.Command(command, args...), log: &logBuffer{}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	w.t.Cleanup(func() {
		p.stop(w.t)
		if w.t.Failed() {
			w.t.Logf("log of %s:\n%s", name, p.log)
		}
	})
	return p
}

// kill ends it without giving it a chance.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends it in order.
func (p *process) stop(t *testing.T) {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Errorf("%v does not stop on SIGTERM", p.cmd.Args)
		p.kill()
	}
}

func (w *world) startRedis() {
	w.t.Helper()
	w.redis = w.start("redis", nil, "redis-server", "--port", strconv.Itoa(w.redisP), "--bind", "127.0.0.1", "--dir", w.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
	w.eventually("redis-server answers", func() error {
		c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", w.redisP), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(c, "PING\r\n"); err != nil {
			return err
		}
		var b [5]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "+PONG" {
			return fmt.Errorf("it said %q, %w", b, err)
		}
		return nil
	})
}

// redisDo sends one command without arguments that contain spaces.
func (w *world) redisDo(command string) {
	w.t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", w.redisP), time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, command+"\r\n"); err != nil {
		w.t.Fatal(err)
	}
	var b [3]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "+OK" {
		w.t.Fatalf("redis answers %s with %q, %v", command, b, err)
	}
}

// eventually repeats check until it is content.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: not within %s: %v", what, patience, err)
}

// replica is a running `tartarus olympus`.
type replica struct {
	*process
	w          *world
	bin        string // the program that it is
	name, data string
	api, fleet int // ports
	edge       int
	Client     *client.Client
}

func (w *world) newReplica(name string) *replica {
	r := &replica{w: w, bin: w.bin, name: name, data: filepath.Join(w.dir, name), api: freePort(w.t), fleet: freePort(w.t), edge: freePort(w.t)}
	r.start()
	w.replicas = append(w.replicas, r)
	return r
}

func (r *replica) url() string       { return fmt.Sprint("http://127.0.0.1:", r.api) }
func (r *replica) fleetAddr() string { return fmt.Sprint(r.w.addr(1), ":", r.fleet) }

func (r *replica) start() {
	r.w.t.Helper()
	r.process = r.w.start(r.name, []string{
		"TARTARUS_DATA=" + r.data, "TARTARUS_NODE_NAME=replica-" + r.name, fmt.Sprint("TARTARUS_REDIS_URL=redis://127.0.0.1:", r.w.redisP, "/3"),
		fmt.Sprint("TARTARUS_API_ADDR=127.0.0.1:", r.api), fmt.Sprint("TARTARUS_EDGE_ADDR=127.0.0.1:", r.edge),
		"TARTARUS_FLEET_ADDR=" + r.fleetAddr(), "TARTARUS_FLEET_ADVERTISE=" + r.fleetAddr(), "TARTARUS_NODE_LOST=20s", "TARTARUS_DEFAULT_TEMPLATE=tiny",
	}, r.bin, "olympus")
	r.w.eventually("replica "+r.name+" answers", func() error {
		select {
		case <-r.done:
			r.w.t.Fatalf("replica %s ended: %s", r.name, r.log)
		default:
		}
		key, err := os.ReadFile(filepath.Join(r.data, "admin.key"))
		if err != nil {
			return err
		}
		c, err := client.New(client.Config{URL: r.url(), APIKey: strings.TrimSpace(string(key))})
		if err != nil {
			return err
		}
		if err := c.Health(r.w.t.Context()); err != nil {
			c.Close()
			return err
		}
		r.Client = c
		return nil
	})
}

// cli runs the command line against this replica.
func (r *replica) cli(args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.w.bin, args...)
	cmd.Env = append(os.Environ(), "TARTARUS_DATA="+r.data, "TARTARUS_URL="+r.url())
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		r.w.t.Fatalf("run %v: %v", args, err)
	}
	return strings.TrimRight(string(out), "\n"), cmd.ProcessState.ExitCode()
}

// must is cli for what has to succeed.
func (r *replica) must(args ...string) string {
	r.w.t.Helper()
	out, code := r.cli(args...)
	if code != 0 {
		r.w.t.Fatalf("%s: tartarus %s: exit code %d: %s", r.name, strings.Join(args, " "), code, out)
	}
	return out
}

// node is a running `tartarus hecatoncheir` in a network namespace of its own.
type node struct {
	*process
	w      *world
	bin    string // the program that it is
	name   string
	number int
	to     []*replica
	own    bool // listens for the edge's traffic itself
}

// newNode starts a node of its own, which joins the fleet.
func (w *world) newNode(name string, number int, own bool, to ...*replica) *node {
	w.t.Helper()
	n := w.joining(name, number, own, to...)
	n.start()
	return n
}

// joining makes the namespace of a node and the token with which it may join.
func (w *world) joining(name string, number int, own bool, to ...*replica) *node {
	w.t.Helper()
	n := &node{w: w, bin: w.bin, name: name, number: number, to: to, own: own}
	ns, outer, inner := n.ns(), fmt.Sprint(w.tag, "v", number), fmt.Sprint(w.tag, "i", number)
	w.ip("netns", "add", ns)
	w.t.Cleanup(func() { w.ip("netns", "del", ns) })
	w.ip("link", "add", outer, "type", "veth", "peer", "name", inner)
	w.t.Cleanup(func() { w.ip("link", "del", outer) }) // the namespace may be held for longer
	w.ip("link", "set", inner, "netns", ns)
	w.ip("link", "set", outer, "master", w.tag, "up")
	w.ip("-n", ns, "link", "set", "lo", "up")
	w.ip("-n", ns, "link", "set", inner, "name", "eth0")
	w.ip("-n", ns, "addr", "add", n.addr()+"/24", "dev", "eth0")
	w.ip("-n", ns, "link", "set", "eth0", "up")
	w.ip("-n", ns, "route", "add", "default", "via", w.addr(1))
	if err := os.WriteFile(n.tokenFile(), []byte(to[0].must("node", "token", "--node", name)+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (n *node) ns() string        { return n.w.tag + n.name }
func (n *node) addr() string      { return n.w.addr(10 + n.number) }
func (n *node) data() string      { return filepath.Join(n.w.dir, n.name) }
func (n *node) tokenFile() string { return filepath.Join(n.w.dir, n.name+".token") }

// enter is a command inside the node's network. Only the network is another one: an agent that follows sees the mounts of the one before.
func (n *node) enter(args ...string) []string {
	return append([]string{"--net=/run/netns/" + n.ns()}, args...)
}

func (n *node) env() []string {
	var addrs []string
	for _, r := range n.to {
		addrs = append(addrs, r.fleetAddr())
	}
	env := []string{
		"TARTARUS_DATA=" + n.data(), "TARTARUS_EDGE_ADDR=127.0.0.1:0", "TARTARUS_NODE_NAME=" + n.name, "TARTARUS_OLYMPUS=" + strings.Join(addrs, ","), "TARTARUS_JOIN_TOKEN_FILE=" + n.tokenFile(),
		// Ranges of their own: beside other stacks on this host, the default one may have no part left that is free in full.
		fmt.Sprintf("TARTARUS_NETWORK_BASE=10.%d.%d.0/18", 100+os.Getpid()%100, 64*n.number), "TARTARUS_NETWORK_SLOTS=2", "TARTARUS_RUNTIME=gvisor", "TARTARUS_WARM_MEMORY=0",
	}
	if n.own {
		env = append(env, "TARTARUS_NODE_ADDR="+n.addr()+":7302")
	}
	return append(env, n.w.nodeEnv...)
}

func (n *node) start() {
	n.w.t.Helper()
	n.process = n.w.start(n.name, n.env(), "nsenter", n.enter(n.bin, "hecatoncheir")...)
}

// leaks looks for what is on the host though no sandbox owns it.
func (n *node) leaks() {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", n.enter(n.w.bin, "doctor", "--leaks")...)
	cmd.Env = append(os.Environ(), n.env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.w.t.Errorf("leaks on node %s: %v: %s", n.name, err, out)
	}
}

// cut drops everything between a node and this namespace until the returned function is called.
func (w *world) cut(n *node) (heal func()) {
	w.t.Helper()
	c, err := nftables.New()
	if err != nil {
		w.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: fmt.Sprint(w.tag, "cut", n.number)})
	a := netip.MustParseAddr(n.addr()).As4()
	for _, side := range []struct {
		name   string
		hook   *nftables.ChainHook
		offset uint32 // of the address in the header
	}{{"in", nftables.ChainHookInput, 12}, {"out", nftables.ChainHookOutput, 16}} {
		chain := c.AddChain(&nftables.Chain{Name: side.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: side.hook, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: side.offset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a[:]))},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := c.Flush(); err != nil {
		w.t.Fatalf("cut node %s off: %v", n.name, err)
	}
	heal = sync.OnceFunc(func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			w.t.Errorf("heal: %v", err)
		}
	})
	w.t.Cleanup(heal)
	return heal
}
