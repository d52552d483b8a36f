package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a real redis-server on loopback, with a folder of its own. It writes every change down before it answers.
type server struct {
	port int
	dir  string
	args []string
	tls  *tls.Config // set: it speaks nothing else
	cmd  *exec.Cmd
}

func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed: ", err)
	}
	s := &server{port: freePort(t), dir: t.TempDir(), args: args}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

// freePort finds a port that is free, and the one 10000 above it, which a cluster's node takes too.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if port > 55000 {
			continue
		}
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port+10000)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func (s *server) addr() string { return fmt.Sprint("127.0.0.1:", s.port) }

func (s *server) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	port := "--port"
	if s.tls != nil {
		port = "--tls-port"
	}
	args := append([]string{port, strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always"}, s.args...)
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := goredis.NewClient(&goredis.Options{Addr: s.addr(), MaxRetries: -1, Protocol: 2, TLSConfig: s.tls})
	defer c.Close()
	wait(t, "redis-server answers", func() error {
		err := c.Ping(t.Context()).Err()
		if said, _ := os.ReadFile(log.Name()); err != nil && len(said) > 0 {
			err = fmt.Errorf("%w; it says: %s", err, said[max(0, len(said)-1000):])
		}
		if goredis.HasErrorPrefix(err, "NOAUTH") {
			return nil
		}
		return err
	})
}

// kill ends it as a power cut does.
func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *server) restart(t testing.TB) {
	t.Helper()
	s.kill()
	s.start(t)
}

// wait asks until there is no error any more.
func wait(t testing.TB, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// prefixes gives each test keys of its own on a shared server.
var prefixes atomic.Int64

func openTest(t testing.TB, c Config) *DB {
	t.Helper()
	if c.Prefix == "" {
		c.Prefix = fmt.Sprintf("test%d:", prefixes.Add(1))
	}
	db, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// startCluster makes a Cluster of three masters, and so many replicas of each.
func startCluster(t testing.TB, replicas int) []*server {
	t.Helper()
	var nodes []*server
	for range 3 * (1 + replicas) {
		nodes = append(nodes, startServer(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendfsync", "no"))
	}
	ctx := t.Context()
	clients := make([]*goredis.Client, len(nodes))
	for i, n := range nodes {
		clients[i] = goredis.NewClient(&goredis.Options{Addr: n.addr(), MaxRetries: -1, Protocol: 2})
		defer clients[i].Close()
	}
	do := func(c *goredis.Client, args ...any) error {
		return c.Do(ctx, append([]any{"CLUSTER"}, args...)...).Err()
	}
	ids := make([]string, 3)
	for i, c := range clients[:3] {
		if err := do(c, "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1); err != nil {
			t.Fatal(err)
		}
		id, err := c.Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = id
	}
	for _, n := range nodes[1:] {
		if err := do(clients[0], "MEET", "127.0.0.1", n.port); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range clients {
		wait(t, "the cluster forms", func() error {
			info, err := c.ClusterInfo(ctx).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprint("cluster_known_nodes:", len(nodes)))) {
				err = errors.New(info)
			}
			return err
		})
		if i >= 3 {
			wait(t, "a replica follows", func() error { return do(c, "REPLICATE", ids[i%3]) })
		}
	}
	for i := 3; i < len(nodes); i++ {
		wait(t, "a replica is in step", func() error { return inStep(ctx, clients[i]) })
	}
	return nodes
}

// inStep reports whether a replica has its master's data.
func inStep(ctx context.Context, c *goredis.Client) error {
	info, err := c.Info(ctx, "replication").Result()
	if err == nil && !strings.Contains(info, "master_link_status:up") {
		err = errors.New(info)
	}
	return err
}
