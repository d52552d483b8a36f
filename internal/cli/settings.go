package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// setting is one value of the configuration, under the names by which it can be set.
type setting struct {
	key    string // in the file; nested ones have a dot
	env    string
	flag   string // derived from env: TARTARUS_API_ADDR is --api-addr
	secret bool
	value  reflect.Value
	origin string // who set it last
}

// settings lists the fields of c that have a key, in the order of the struct. Setting one changes c.
func settings(c *daemon.Config) []*setting {
	return settingsOf(reflect.ValueOf(c).Elem(), "")
}

func settingsOf(v reflect.Value, prefix string) []*setting {
	var out []*setting
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key, env := field.Tag.Get("key"), field.Tag.Get("env")
		switch {
		case key == "":
		case env == "" && field.Type.Kind() == reflect.Struct:
			out = append(out, settingsOf(v.Field(i), prefix+key+".")...)
		default:
			name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, "TARTARUS_"), "_", "-"))
			out = append(out, &setting{key: prefix + key, env: env, flag: name, secret: field.Tag.Get("secret") != "",
				value: v.Field(i), origin: "default"})
		}
	}
	return out
}

// set parses text into the value. Nothing changes when it does not fit.
func (s *setting) set(text, origin string) error {
	v, err := parse(s.value.Type(), text)
	if err != nil {
		return fmt.Errorf("%s (%s): %w", s.key, origin, err)
	}
	s.value.Set(v)
	s.origin = origin
	return nil
}

func parse(t reflect.Type, text string) (reflect.Value, error) {
	switch reflect.Zero(t).Interface().(type) {
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return reflect.Value{}, fmt.Errorf("%q is no duration such as 30s, 5m or 2h", text)
		}
		return reflect.ValueOf(d), nil
	case netip.Prefix:
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return reflect.Value{}, fmt.Errorf("%q is no address range such as 198.18.0.0/15", text)
		}
		return reflect.ValueOf(p), nil
	case map[string]string:
		m, err := parsePairs(strings.Split(text, ","))
		return reflect.ValueOf(m), err
	}
	v := reflect.New(t).Elem()
	switch t.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return v, fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || v.OverflowInt(n) {
			return v, fmt.Errorf("%q is no whole number", text)
		}
		v.SetInt(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return v, fmt.Errorf("%q is no number", text)
		}
		v.SetFloat(n)
	case reflect.Slice:
		if strings.TrimSpace(text) == "" {
			return v, nil
		}
		for part := range strings.SplitSeq(text, ",") {
			item, err := parse(t.Elem(), strings.TrimSpace(part))
			if err != nil {
				return v, err
			}
			v.Set(reflect.Append(v, item))
		}
	default:
		return v, fmt.Errorf("values of type %s cannot be set", t)
	}
	return v, nil
}

// parsePairs reads NAME=VALUE pairs.
func parsePairs(pairs []string) (map[string]string, error) {
	out := map[string]string{}
	for _, pair := range pairs {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not NAME=VALUE", pair)
		}
		out[name] = value
	}
	return out, nil
}

// text is the value as it would be written in a variable or flag.
func (s *setting) text() string {
	if s.secret && !s.value.IsZero() {
		return "[redacted]"
	}
	switch v := s.value.Interface().(type) {
	case map[string]string:
		return strings.Join(pairs(v), ",")
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprint(v)
	}
}

// effective is a configuration with the way it came about.
type effective struct {
	daemon.Config
	file     string // "" when there is none
	settings []*setting
}

// origin tells who set a key.
func (f *effective) origin(key string) string {
	for _, s := range f.settings {
		if s.key == key {
			return s.origin
		}
	}
	return ""
}

// configure builds the configuration: defaults, then the file, then the environment, then flags that were given.
// flags may be nil.
func (e *Env) configure(flags *pflag.FlagSet) (*effective, error) {
	out := &effective{Config: daemon.Default()}
	if os.Geteuid() != 0 {
		out.DataDir = e.userData()
	}
	out.settings = settings(&out.Config)
	// The data folder first: it says where the file is.
	data := out.settings[0]
	if v, ok := e.lookup(data.env); ok && v != "" {
		data.value.SetString(v)
	}
	if e.global.data != "" {
		data.value.SetString(e.global.data)
	}
	if err := out.readFile(e.global.config); err != nil {
		return nil, err
	}
	for _, s := range out.settings {
		if v, ok := e.lookup(s.env); ok && v != "" {
			if err := s.set(v, "env "+s.env); err != nil {
				return nil, err
			}
		}
	}
	if e.global.data != "" {
		_ = data.set(e.global.data, "flag --data")
	}
	if flags != nil {
		for _, s := range out.settings {
			if f := flags.Lookup(s.flag); f != nil && f.Changed && s != data {
				if err := s.set(f.Value.String(), "flag --"+s.flag); err != nil {
					return nil, err
				}
			}
		}
	}
	if abs, err := filepath.Abs(out.DataDir); err == nil && out.DataDir != "" {
		out.DataDir = abs
	}
	return out, out.Validate()
}

// userData is where a user without root keeps data.
func (e *Env) userData() string {
	if dir, ok := e.lookup("XDG_DATA_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "tartarus")
	}
	if home, ok := e.lookup("HOME"); ok && filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "tartarus")
	}
	return filepath.Join(os.TempDir(), "tartarus-"+strconv.Itoa(os.Geteuid()))
}

// readFile takes over what the file says. Only a file that was asked for must be there.
func (f *effective) readFile(path string) error {
	asked := path != ""
	if !asked {
		path = filepath.Join(f.DataDir, "config.yaml")
	}
	raw, err := os.ReadFile(path)
	if !asked && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	f.file = path
	if len(doc.Content) == 0 {
		return nil
	}
	return f.takeOver(doc.Content[0], "", map[string]bool{})
}

// takeOver walks a mapping of the file. Keys are matched without regard to case, so that EnableHypnos and enableHypnos are
// one; unknown and repeated keys are errors with their line.
func (f *effective) takeOver(node *yaml.Node, prefix string, seen map[string]bool) error {
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("%s line %d: expected keys and values", f.file, node.Line)
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		key := prefix + name.Value
		if seen[strings.ToLower(key)] {
			return fmt.Errorf("%s line %d: %s is set twice", f.file, name.Line, key)
		}
		seen[strings.ToLower(key)] = true
		s, nested := f.find(key)
		var err error
		switch {
		case nested:
			err = f.takeOver(value, key+".", seen)
		case s == nil:
			err = fmt.Errorf("%s line %d: unknown key %s; `tartarus config` shows all there are", f.file, name.Line, key)
		default:
			var text string
			if text, err = scalar(value); err == nil {
				err = s.set(text, "file")
			}
			if err != nil {
				err = fmt.Errorf("%s line %d: %w", f.file, name.Line, err)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find returns the setting of this key, or tells that it is the head of several.
func (f *effective) find(key string) (s *setting, nested bool) {
	for _, s := range f.settings {
		if strings.EqualFold(s.key, key) {
			return s, false
		}
		if head, _, ok := strings.Cut(s.key, "."); ok && strings.EqualFold(head, key) {
			return nil, true
		}
	}
	return nil, false
}

// scalar is the text of a value of the file: lists and mappings become what a variable would hold.
func scalar(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", nil
		}
		return n.Value, nil
	case yaml.SequenceNode, yaml.MappingNode:
		var parts []string
		for i, c := range n.Content {
			if c.Kind != yaml.ScalarNode || strings.Contains(c.Value, ",") {
				return "", errors.New("a value is nested too deep, or holds a comma")
			}
			if n.Kind == yaml.MappingNode && i%2 == 1 {
				parts[len(parts)-1] += "=" + c.Value
				continue
			}
			parts = append(parts, c.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("aliases are not supported")
}

// help says in a few words what each setting is, for flags.
var help = map[string]string{
	"apiAddr":                    "where the API listens, host:port",
	"edgeAddr":                   "where the TLS edge listens, host:port; empty switches it off",
	"domain":                     "wildcard domain of sandboxes' ports",
	"edgeCertFile":               "certificate of the edge (PEM); without it the edge has an authority of its own",
	"edgeKeyFile":                "key of that certificate (PEM)",
	"runtime":                    "runtime of sandboxes: auto, firecracker, qemu or gvisor",
	"kernel":                     "kernel of virtual machines: a folder with it and its modules, or its file",
	"firecracker":                "program of the runtime firecracker",
	"jailer":                     "program that jails firecracker, of the same release",
	"pageFaultHandler":           "memory of restored Firecracker machines comes from a process beside each, which remembers what is touched first",
	"diffSnapshots":              "a pause of a Firecracker sandbox that was paused before writes only what changed since",
	"ioUring":                    "Firecracker's disks go through io_uring",
	"defaultTemplate":            "template of creates that name none (default base when built, else tiny)",
	"nodeName":                   "name of this node",
	"labels":                     "labels of this node, NAME=VALUE,...",
	"limits.defaultTimeout":      "life of a sandbox when nothing else is asked",
	"limits.maxTimeout":          "longest life that may be asked for",
	"limits.defaultVCPU":         "virtual processors of a sandbox when nothing else is asked",
	"limits.maxVCPU":             "most virtual processors of one sandbox",
	"limits.defaultMemoryMB":     "MiB of memory of a sandbox when nothing else is asked",
	"limits.maxMemoryMB":         "most MiB of memory of one sandbox",
	"limits.defaultDiskMB":       "MiB of disk of a sandbox when nothing else is asked",
	"limits.maxDiskMB":           "most MiB of disk of one sandbox",
	"limits.maxVolumeMB":         "most MiB of one volume",
	"limits.maxPIDs":             "processes and threads that one sandbox may have",
	"limits.endGrace":            "time that a sandbox which times out or is drained has to end in good order",
	"limits.maxGrace":            "longest such time that may be asked for",
	"limits.maxSandboxes":        "sandboxes that this node holds at once",
	"limits.nodeVCPU":            "processors that this node hands out in all; 0 sets no bound of its own",
	"limits.nodeMemoryMB":        "MiB of memory that this node hands out in all; 0 is 16 times the host's",
	"rates.diskMB":               "MiB that a sandbox in a virtual machine may read and write per second; 0 (default) sets no bound",
	"rates.diskOps":              "the same in operations",
	"rates.networkMbit":          "millions of bits per second that one on Firecracker may receive, and send; 0 (default) sets no bound",
	"rates.networkPackets":       "the same in frames",
	"network.base":               "IPv4 range that sandboxes get their addresses from",
	"network.slots":              "network slots kept ready ahead",
	"warm.memory":                "MiB that machines which wait for somebody may take together; 0 keeps none",
	"warm.keep":                  "machines that wait, of each kind in use",
	"warm.most":                  "most machines that wait, of each kind",
	"snapshots.maxMB":            "MiB that snapshots may take on this node; 0 sets no bound",
	"snapshots.copyDir":          "folder that copies of snapshots go to, where there is no bucket",
	"s3.endpoint":                "URL of the object store (default Amazon's for the region)",
	"s3.bucket":                  "bucket that copies of snapshots go to",
	"s3.region":                  "region of the bucket (default us-east-1)",
	"s3.accessKey":               "who asks the object store",
	"s3.secretKey":               "and the secret",
	"s3.pathStyle":               "put the bucket into the path rather than the host name",
	"s3.prefix":                  "put before the name of everything stored",
	"redis.url":                  "shared store of a fleet, redis://[user@]host:port[,host:port...][/db]; rediss:// for TLS",
	"redis.master":               "name of the master that Sentinels watch",
	"redis.cluster":              "the hosts are nodes of a Redis Cluster",
	"redis.passwordFile":         "file with the Redis user's password",
	"redis.sentinelPasswordFile": "file with the Sentinels' password",
	"redis.caFile":               "authority of the Redis servers' certificates (PEM)",
	"redis.certFile":             "certificate shown to Redis (PEM)",
	"redis.keyFile":              "key of that certificate (PEM)",
	"redis.prefix":               "what all keys in Redis begin with",
	"redis.waitReplicas":         "Redis replicas that every change waits for",
	"fleet.addr":                 "where a replica listens for nodes",
	"fleet.advertise":            "address under which nodes reach this replica",
	"fleet.olympus":              "replicas that a node dials, HOST:PORT,...",
	"fleet.tokenFile":            "file with the token that lets a node join",
	"fleet.nodeAddr":             "where a node listens for the edge's traffic (default: through its session)",
	"fleet.nodeLost":             "silence of a node after which its sandboxes count as lost",
	"fleet.nodeAdvertise":        "address under which replicas reach that",
	"volumesDir":                 "where the files of volumes are (default: in the data folder)",
	"audit.retention":            "how long records of the audit log are kept; 0 is for ever",
	"audit.archiveFor":           "how long ended parts of the audit log are kept, and locked where it can lock, in the bucket; 0 (default) sends none",
	"oidc.issuer":                "URL of the OpenID Connect issuer whose ID tokens let people in; empty (default) lets nobody in by tokens",
	"oidc.clientID":              "for whom the issuer makes these tokens",
	"oidc.caFile":                "authority of the issuer's certificate (PEM)",
	"oidc.roleClaim":             "claim that roles follow from",
	"oidc.roles":                 "what its values are worth, VALUE=ROLE,...",
	"oidc.tenantClaim":           "claim that tenants follow from (default: all are of one tenant)",
	"oidc.tenants":               "tenants of its values, VALUE=TENANT,... (default: values are tenants)",
	"oidc.tenant":                "tenant of everybody, where no claim names it",
	"signatureKeys":              "public keys by which container images may be signed, NAME=FILE,... (PEM)",
	"audit.archiveEvery":         "how far that may be behind",
	"metricsAddr":                "where metrics are served without a key, host:port; empty (default) leaves them to the API and the control socket",
	"pauseOnExit":                "pause every sandbox before the server ends, instead of leaving them to the next",
	"hypnos.idleAfter":           "how long nothing may have used a sandbox that is put to sleep",
	"hypnos.cpuPercent":          "what it may use of one processor all the same",
	"hypnos.minAge":              "how old it must be",
	"hypnos.atOnce":              "how many are put to sleep at the same time",
	"heat.warm":                  "processors kept busy from which on a sandbox is warm",
	"heat.hot":                   "the same for hot",
	"heat.inferno":               "the same for an inferno",
	"heat.hint":                  "steps by which a caller's hint may move the heat",
	"typhon.strikes":             "strikes of a sandbox that put it into quarantine; 0 never does",
	"typhon.templateStrikes":     "the same, of all sandboxes of a template of a tenant",
	"typhon.tenantStrikes":       "the same, of all sandboxes of a tenant",
	"typhon.window":              "how long a strike counts",
	"typhon.packets":             "refused packets in a minute that are a strike; 0 never are",
	"typhon.targets":             "refused addresses and ports in a minute that are a strike; 0 never are",
	"enableHypnos":               "hibernate idle sandboxes",
	"logLevel":                   "least severe level logged: debug, info, warn or error",
	"logFormat":                  "text or json",
}

// addSettings gives a command a flag for every setting that has none yet. Their values are read by configure.
func addSettings(flags *pflag.FlagSet) {
	defaults := daemon.Default()
	for _, s := range settings(&defaults) {
		if s.key == "dataDir" {
			continue // --data, which every command has
		}
		usage := help[s.key] + " (" + s.env + ")"
		if s.value.Kind() == reflect.Bool {
			flags.Bool(s.flag, s.value.Bool(), usage)
			continue
		}
		flags.String(s.flag, s.text(), usage)
	}
}
