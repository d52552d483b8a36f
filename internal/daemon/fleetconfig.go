package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/store/redis"
)

// Part is what one process is of a stack.
type Part int

// The parts.
const (
	Whole   Part = iota // API, edge, node and store in one process
	Control             // a replica of the control plane: API and edge, and nodes come to it
	Agent               // a node: its control plane is elsewhere
)

// Redis says where the shared store is and how it is spoken to.
type Redis struct {
	// URL is redis://[user@]host:port[,host:port...][/db], or rediss:// for TLS. Several hosts are Sentinels, with master, or nodes of a Cluster.
	URL string `key:"url" env:"TARTARUS_REDIS_URL"`
	// Master is the name under which Sentinels know the master.
	Master string `key:"master" env:"TARTARUS_REDIS_MASTER"`
	// Cluster says that the hosts are nodes of a Redis Cluster.
	Cluster bool `key:"cluster" env:"TARTARUS_REDIS_CLUSTER"`
	// PasswordFile holds the password of the user in the URL, and SentinelPasswordFile that of the Sentinels. A password in a URL ends up in
	// process lists, so it is refused there.
	PasswordFile         string `key:"passwordFile" env:"TARTARUS_REDIS_PASSWORD_FILE"`
	SentinelPasswordFile string `key:"sentinelPasswordFile" env:"TARTARUS_REDIS_SENTINEL_PASSWORD_FILE"`
	// CAFile signs the servers' certificates, in PEM; without it the host's own authorities count. CertFile and KeyFile are shown to the servers.
	CAFile   string `key:"caFile" env:"TARTARUS_REDIS_CA_FILE"`
	CertFile string `key:"certFile" env:"TARTARUS_REDIS_CERT_FILE"`
	KeyFile  string `key:"keyFile" env:"TARTARUS_REDIS_KEY_FILE"`
	// Prefix begins every key, so that several installations can share a server.
	Prefix string `key:"prefix" env:"TARTARUS_REDIS_PREFIX"`
	// WaitReplicas makes every change wait for so many replicas.
	WaitReplicas int `key:"waitReplicas" env:"TARTARUS_REDIS_WAIT_REPLICAS"`
}

// Fleet says how replicas and nodes find each other.
type Fleet struct {
	// Addr is where a replica listens for nodes (host:port).
	Addr string `key:"addr" env:"TARTARUS_FLEET_ADDR"`
	// Advertise is the address under which nodes reach this replica's Addr (host:port), told to all nodes. Empty tells them nothing.
	Advertise string `key:"advertise" env:"TARTARUS_FLEET_ADVERTISE"`
	// Olympus are the addresses of replicas that a node dials first; those that live tell it of all others.
	Olympus []string `key:"olympus" env:"TARTARUS_OLYMPUS"`
	// TokenFile holds the join token of a node that is not in the fleet yet; `tartarus node token` makes one.
	TokenFile string `key:"tokenFile" env:"TARTARUS_JOIN_TOKEN_FILE"`
	// NodeAddr is where a node listens for the edge's traffic (host:port). Empty: it comes through the session.
	NodeAddr string `key:"nodeAddr" env:"TARTARUS_NODE_ADDR"`
	// NodeLost is how long a node may be silent before its sandboxes count as lost. A node that comes back corrects it.
	NodeLost time.Duration `key:"nodeLost" env:"TARTARUS_NODE_LOST"`
	// NodeAdvertise is the address under which replicas reach NodeAddr (host:port); empty is NodeAddr itself.
	NodeAdvertise string `key:"nodeAdvertise" env:"TARTARUS_NODE_ADVERTISE"`
}

func (f Fleet) validate(part Part) (errs []error) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, tartarus.Errorf(tartarus.Invalid, format, args...))
		}
	}
	check(validAddr(f.Addr), "fleet.addr %q must be host:port", f.Addr)
	for key, addr := range map[string]string{"fleet.advertise": f.Advertise, "fleet.nodeAddr": f.NodeAddr, "fleet.nodeAdvertise": f.NodeAdvertise} {
		check(addr == "" || validAddr(addr), "%s %q must be host:port, or empty", key, addr)
	}
	for _, addr := range f.Olympus {
		host, _, err := net.SplitHostPort(addr)
		check(validAddr(addr) && err == nil && host != "", "fleet.olympus %q must be host:port", addr)
	}
	check(f.NodeLost >= 5*time.Second, "fleet.nodeLost %s must be at least 5s: nodes report every five", f.NodeLost)
	if part == Agent {
		check(len(f.Olympus) > 0, "fleet.olympus must name at least one replica, as TARTARUS_OLYMPUS=host:7301")
	}
	return errs
}

func (r Redis) validate() (errs []error) {
	if r.URL == "" {
		return nil
	}
	if _, err := r.addresses(); err != nil {
		return []error{err}
	}
	if (r.CertFile == "") != (r.KeyFile == "") {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "redis.certFile and redis.keyFile go together"))
	}
	return errs
}

// addresses takes the URL apart into what a store needs of it.
func (r Redis) addresses() (redis.Config, error) {
	c := redis.Default()
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "redis" && u.Scheme != "rediss" || u.Host == "":
		return c, tartarus.Errorf(tartarus.Invalid, "redis.url must be redis://[user@]host:port[,host:port...][/db], or rediss:// for TLS")
	case u.RawQuery != "" || u.Fragment != "":
		return c, tartarus.Errorf(tartarus.Invalid, "redis.url takes no parameters; settings of their own are redis.master, redis.cluster and so on")
	}
	if _, set := u.User.Password(); set {
		return c, tartarus.Errorf(tartarus.Invalid, "redis.url must not hold a password: put it into a file and name that in redis.passwordFile")
	}
	c.Username = u.User.Username()
	for host := range strings.SplitSeq(u.Host, ",") {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(host, "6379")
		}
		c.Addrs = append(c.Addrs, host)
	}
	if db := strings.Trim(u.Path, "/"); db != "" {
		if c.DB, err = strconv.Atoi(db); err != nil {
			return c, tartarus.Errorf(tartarus.Invalid, "redis.url: %q is no number of a database", db)
		}
	}
	if u.Scheme == "rediss" {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c.Master, c.Cluster, c.Prefix, c.WaitReplicas = r.Master, r.Cluster, r.Prefix, r.WaitReplicas
	if c.Cluster {
		c.Shards = 0 // several per master
	}
	return c, c.Validate()
}

// config is the store's configuration with what the files hold.
func (r Redis) config(log *slog.Logger) (redis.Config, error) {
	c, err := r.addresses()
	if err != nil {
		return c, err
	}
	c.Log = log
	if c.Password, err = readSecret(r.PasswordFile); err != nil {
		return c, err
	}
	if c.SentinelPassword, err = readSecret(r.SentinelPasswordFile); err != nil {
		return c, err
	}
	if c.TLS == nil {
		if r.CAFile != "" || r.CertFile != "" {
			return c, tartarus.Errorf(tartarus.Invalid, "redis.caFile and redis.certFile are for TLS: write rediss:// in redis.url")
		}
		return c, nil
	}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return c, fmt.Errorf("read redis.caFile: %w", err)
		}
		c.TLS.RootCAs = x509.NewCertPool()
		if !c.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return c, tartarus.Errorf(tartarus.Invalid, "redis.caFile %s holds no certificate", r.CAFile)
		}
	}
	if r.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(r.CertFile, r.KeyFile)
		if err != nil {
			return c, fmt.Errorf("read redis.certFile: %w", err)
		}
		c.TLS.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func readSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}
