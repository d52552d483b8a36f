package redis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

// aclRules are what the package comment tells operators to allow.
const aclRules = "resetchannels -@all +@read +@write +@connection +evalsha +eval +time +wait -@dangerous"

// TestLeastPrivilege runs the suites as an ACL user who may do no more than the store needs, over TLS with certificates on
// both sides, in a database other than 0.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed: ", err)
	}
	config, files := certificate(t)
	s := &server{port: freePort(t), dir: t.TempDir(), tls: config, args: append([]string{
		"--appendfsync", "no", "--port", "0",
		"--tls-cert-file", files[0], "--tls-key-file", files[1], "--tls-ca-cert-file", files[0],
		"--user", "default", "off", "--user", "tartarus", "on", ">s3cret", "~test*",
	}, strings.Fields(aclRules)...)}
	s.start(t)
	t.Cleanup(s.kill)
	c := Config{Addrs: []string{s.addr()}, Username: "tartarus", Password: "s3cret", TLS: config, DB: 5}
	storetest.Queue(t, func(t *testing.T) storetest.Subject[storetest.QueueStore] {
		return storetest.Subject[storetest.QueueStore]{Store: openTest(t, c).Queue()}
	})
	db := openTest(t, c)
	for name, run := range everyCall(db) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if err := run(ctx); tartarus.Is(err, tartarus.Unavailable) || tartarus.Is(err, tartarus.Internal) && ctx.Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	for what, spoil := range map[string]func(*Config){
		"a wrong password":   func(c *Config) { c.Password = "guess" },
		"no user":            func(c *Config) { c.Username, c.Password = "", "" },
		"another's keys":     func(c *Config) { c.Prefix = "other:" },
		"no TLS":             func(c *Config) { c.TLS = nil },
		"an unknown CA":      func(c *Config) { c.TLS = &tls.Config{} },
		"no such database":   func(c *Config) { c.DB = 999 },
		"nobody listens":     func(c *Config) { c.Addrs = []string{fmt.Sprint("127.0.0.1:", freePort(t))} },
		"no client's papers": func(c *Config) { c.TLS = &tls.Config{RootCAs: config.RootCAs} },
	} {
		bad := c
		bad.Timeout = time.Second
		spoil(&bad)
		if err := openTest(t, bad).Ping(t.Context()); !tartarus.Is(err, tartarus.Unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// certificate makes one for 127.0.0.1 that is its own CA, for both sides.
func certificate(t *testing.T) (*tls.Config, [2]string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := [2]string{filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")}
	for i, b := range []*pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(files[i], pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, files
}

// TestSentinel finds the master through a Sentinel, and the next one when it has died. WAIT sees to it that the replica has
// what was acknowledged.
func TestSentinel(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short")
	}
	master := startServer(t)
	replica := startServer(t, "--replicaof", fmt.Sprint("127.0.0.1 ", master.port))
	rc := goredis.NewClient(&goredis.Options{Addr: replica.addr(), Protocol: 2})
	defer rc.Close()
	wait(t, "the replica is in step", func() error { return inStep(t.Context(), rc) })
	sentinel := &server{port: freePort(t), dir: t.TempDir()}
	conf := filepath.Join(sentinel.dir, "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor acheron 127.0.0.1 %d 1\nsentinel down-after-milliseconds acheron 500\nsentinel failover-timeout acheron 3000\n", master.port), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel.cmd = exec.Command("redis-server", conf, "--port", fmt.Sprint(sentinel.port), "--bind", "127.0.0.1", "--dir", sentinel.dir, "--sentinel")
	if err := sentinel.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sentinel.kill)

	db := openTest(t, Config{Addrs: []string{sentinel.addr()}, Master: "acheron", Timeout: time.Second, WaitReplicas: 1})
	wait(t, "the master is found", func() error { return db.Ping(t.Context()) })
	job := func(i int) acheron.Job {
		return acheron.Job{ID: fmt.Sprint("j", i), Tenant: "t", Node: "n1", MaxAttempts: 1}
	}
	const n = 50
	for i := range n {
		if _, err := db.Queue().Enqueue(t.Context(), job(i)); err != nil {
			t.Fatal(err)
		}
	}
	sc := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.addr(), Protocol: 2})
	defer sc.Close()
	wait(t, "the sentinel knows the replica", func() error { // or it has nobody to promote
		found, err := sc.Replicas(t.Context(), "acheron").Result()
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	master.kill()
	began := time.Now()
	wait(t, "the replica has taken over", func() error { _, err := db.Queue().Job(t.Context(), "j0"); return err })
	t.Logf("%s without a master", time.Since(began).Round(10*time.Millisecond))
	for i := range n { // all were on the replica before they were acknowledged
		if _, err := db.Queue().Job(t.Context(), fmt.Sprint("j", i)); err != nil {
			t.Error(err)
		}
	}
	_, err := db.Queue().Enqueue(t.Context(), job(n)) // nobody is left to wait for
	if !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("with no replica: %v", err)
	}
}
