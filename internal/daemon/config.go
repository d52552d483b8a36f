// Package daemon wires the parts of Tartarus into one process and runs them. Which store and which runtime are used
// is chosen here, once, from Config, and nowhere else.
package daemon

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hypnos"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// Config is everything that can be set about one process. The command line fills it from
// defaults, a file, the environment and flags, in that order; nothing below reads the environment.
//
// The tags are the names under which a value is set: `key` in the file, `env` in the environment.
// A field without a key is set by the program only.
type Config struct {
	// DataDir holds everything that outlives the process: the store, templates, snapshots, keys, logs.
	DataDir string `key:"dataDir" env:"TARTARUS_DATA"`
	// APIAddr is where the API listens (host:port). Port 0 lets the kernel choose.
	APIAddr string `key:"apiAddr" env:"TARTARUS_API_ADDR"`
	// EdgeAddr is where the TLS edge to the sandboxes' ports listens (host:port). "off" switches it off, and so does the empty value,
	// which a variable cannot give: an empty one counts as not set.
	EdgeAddr string `key:"edgeAddr" env:"TARTARUS_EDGE_ADDR"`
	// Domain is the wildcard domain of the edge: {port}-{sandbox}.{domain}.
	Domain string `key:"domain" env:"TARTARUS_DOMAIN"`
	// EdgeCertFile and EdgeKeyFile are the operator's own wildcard certificate and its key, in PEM, read again when they change.
	// Without them the edge uses an authority of its own, made at the first start.
	EdgeCertFile string `key:"edgeCertFile" env:"TARTARUS_EDGE_CERT_FILE"`
	EdgeKeyFile  string `key:"edgeKeyFile" env:"TARTARUS_EDGE_KEY_FILE"`
	// Runtime names the driver that runs sandboxes; "auto" takes the strongest usable one.
	Runtime string `key:"runtime" env:"TARTARUS_RUNTIME"`
	// Kernel is the Linux kernel of virtual machines: a folder with it and its modules, or its file. Empty looks in the data folder's kernel, in
	// data/firecracker, and in /boot.
	Kernel string `key:"kernel" env:"TARTARUS_KERNEL"`
	// Firecracker and Jailer are the programs of these names, of one release. Empty looks in the data folder's firecracker, in data/firecracker,
	// and in PATH.
	Firecracker string `key:"firecracker" env:"TARTARUS_FIRECRACKER"`
	Jailer      string `key:"jailer" env:"TARTARUS_JAILER"`
	// PageFaultHandler has a process beside each restored Firecracker machine bring its memory in, and remember what is touched first; from the bucket, where a
	// snapshot is there alone. Without it the kernel does, snapshots are fetched whole, and clones share the pages that they only read.
	PageFaultHandler bool `key:"pageFaultHandler" env:"TARTARUS_PAGE_FAULT_HANDLER"`
	// DiffSnapshots has Firecracker note which pages of a restored machine change, so that its next pause writes these only. Writes of guests become slower the first time
	// that they touch a page.
	DiffSnapshots bool `key:"diffSnapshots" env:"TARTARUS_DIFF_SNAPSHOTS"`
	// IOUring has Firecracker read and write disks through io_uring.
	IOUring bool `key:"ioUring" env:"TARTARUS_IO_URING"`
	// DefaultTemplate is what a create without a template gets. Empty means base when built, else tiny.
	DefaultTemplate string `key:"defaultTemplate" env:"TARTARUS_DEFAULT_TEMPLATE"`
	// NodeName is this node's name in the registry. It must stay the same across restarts.
	NodeName string `key:"nodeName" env:"TARTARUS_NODE_NAME"`
	// Labels are matched by pools and policies, such as tartarus.io/typhon.
	Labels map[string]string `key:"labels" env:"TARTARUS_LABELS"`
	// Limits bound what one sandbox and the whole node may take.
	Limits Limits `key:"limits"`
	// Rates bound what one sandbox may move on its disk and its network.
	Rates Rates `key:"rates"`
	// Network is where sandboxes get their addresses from.
	Network Network `key:"network"`
	// Warm says how many machines wait for somebody who wants them.
	Warm Warm `key:"warm"`
	// Snapshots says how much may be kept, and where copies go.
	Snapshots Snapshots `key:"snapshots"`
	// S3 is the bucket that copies of snapshots go to. Without a bucket they stay on this machine.
	S3 S3 `key:"s3"`
	// Redis is the store that replicas share. Without a url the store is a file in DataDir.
	Redis Redis `key:"redis"`
	// Fleet is how replicas of the control plane and nodes find each other when they are processes of their own.
	Fleet Fleet `key:"fleet"`
	// VolumesDir is where the files of volumes are: empty for a folder of the data folder, else one that all servers and nodes of a
	// fleet share over a network file system.
	VolumesDir string `key:"volumesDir" env:"TARTARUS_VOLUMES"`
	// Audit is how long the record of what was done is kept.
	Audit Audit `key:"audit"`
	// OIDC lets people in with ID tokens. Without an issuer only API keys do.
	OIDC OIDC `key:"oidc"`
	// SignatureKeys are the public keys by which container images may be signed: names for policies, and files in PEM.
	SignatureKeys map[string]string `key:"signatureKeys" env:"TARTARUS_SIGNATURE_KEYS"`
	// PauseOnExit pauses every sandbox before the server ends. Otherwise they run on, and the next server adopts them.
	PauseOnExit bool `key:"pauseOnExit" env:"TARTARUS_PAUSE_ON_EXIT"`
	// EnableHypnos switches hibernation on: idle sandboxes become snapshots and wake on traffic.
	EnableHypnos bool `key:"enableHypnos" env:"ENABLE_HYPNOS"`
	// Hypnos says when a sandbox counts as idle.
	Hypnos Hypnos `key:"hypnos"`
	// Heat sorts sandboxes by the work that they are expected to make.
	Heat Heat `key:"heat"`
	// Typhon says what puts a sandbox into quarantine by itself.
	Typhon Typhon `key:"typhon"`
	// MetricsAddr is where this process serves its metrics without any key (host:port), besides the API's own route and the control socket. It belongs on
	// an address that only a Prometheus reaches. Empty switches it off.
	MetricsAddr string `key:"metricsAddr" env:"TARTARUS_METRICS_ADDR"`
	// LogLevel is the least severe level that is logged: debug, info, warn or error.
	LogLevel string `key:"logLevel" env:"TARTARUS_LOG_LEVEL"`
	// LogFormat is text or json.
	LogFormat string `key:"logFormat" env:"TARTARUS_LOG_FORMAT"`

	// Part is what this process is of a stack; the zero Part is all of it.
	Part Part
	// Ephemeral runs the stack for one caller: the store lives in a folder of its own that is removed
	// at the end, every sandbox ends with the process, and templates still come from DataDir.
	Ephemeral bool
	// Recorded keeps an audit log for an ephemeral stack too, in the same folder.
	Recorded bool
	// Log receives what an operator acts on. Nil discards.
	Log *slog.Logger
}

// Limits bound sandboxes. A create that names nothing gets the defaults; one that asks for more than a
// maximum is refused.
type Limits struct {
	// DefaultTimeout is how long a sandbox lives when nothing else is asked.
	DefaultTimeout time.Duration `key:"defaultTimeout" env:"TARTARUS_DEFAULT_TIMEOUT"`
	// MaxTimeout is the longest life that may be asked for at once; it can be extended later.
	MaxTimeout time.Duration `key:"maxTimeout" env:"TARTARUS_MAX_TIMEOUT"`
	// DefaultVCPU and MaxVCPU count whole virtual processors of one sandbox.
	DefaultVCPU int `key:"defaultVCPU" env:"TARTARUS_DEFAULT_VCPU"`
	MaxVCPU     int `key:"maxVCPU" env:"TARTARUS_MAX_VCPU"`
	// DefaultMemoryMB and MaxMemoryMB are MiB of memory of one sandbox.
	DefaultMemoryMB int64 `key:"defaultMemoryMB" env:"TARTARUS_DEFAULT_MEMORY_MB"`
	MaxMemoryMB     int64 `key:"maxMemoryMB" env:"TARTARUS_MAX_MEMORY_MB"`
	// DefaultDiskMB and MaxDiskMB are MiB that the writable layer of one sandbox may hold.
	DefaultDiskMB int64 `key:"defaultDiskMB" env:"TARTARUS_DEFAULT_DISK_MB"`
	MaxDiskMB     int64 `key:"maxDiskMB" env:"TARTARUS_MAX_DISK_MB"`
	// MaxVolumeMB is MiB that one volume may hold.
	MaxVolumeMB int64 `key:"maxVolumeMB" env:"TARTARUS_MAX_VOLUME_MB"`
	// MaxPIDs is how many processes and threads one sandbox may have.
	MaxPIDs int64 `key:"maxPIDs" env:"TARTARUS_MAX_PIDS"`
	// EndGrace is how long a sandbox that is ended by its timeout or a drain has to end in good order, where nothing else is asked.
	EndGrace time.Duration `key:"endGrace" env:"TARTARUS_END_GRACE"`
	// MaxGrace is the longest such time, whoever asks.
	MaxGrace time.Duration `key:"maxGrace" env:"TARTARUS_MAX_GRACE"`
	// MaxSandboxes is how many sandboxes this node holds at once.
	MaxSandboxes int `key:"maxSandboxes" env:"TARTARUS_MAX_SANDBOXES"`
	// NodeVCPU and NodeMemoryMB are how many processors and MiB of memory this node hands out in all. 0 is what its sandboxes may ask for at the
	// most, and 16 times the host's memory.
	NodeVCPU     int   `key:"nodeVCPU" env:"TARTARUS_NODE_VCPU"`
	NodeMemoryMB int64 `key:"nodeMemoryMB" env:"TARTARUS_NODE_MEMORY_MB"`
}

// Snapshots bounds what snapshots take, those of paused sandboxes included.
type Snapshots struct {
	// MaxMB is how many MiB the snapshots of one tenant may take on a node; 0 sets no bound. Who is over it cannot pause or take snapshots.
	MaxMB int64 `key:"maxMB" env:"TARTARUS_SNAPSHOTS_MAX_MB"`
	// CopyDir is a folder that copies go to, such as one that several machines mount; a bucket takes its place.
	CopyDir string `key:"copyDir" env:"TARTARUS_SNAPSHOTS_COPY_DIR"`
}

// S3 is a bucket of any object store that speaks S3.
type S3 struct {
	// Endpoint is the URL of the server; empty is Amazon's own for the region.
	Endpoint string `key:"endpoint" env:"TARTARUS_S3_ENDPOINT"`
	// Bucket must exist. Empty switches copies off.
	Bucket string `key:"bucket" env:"TARTARUS_S3_BUCKET"`
	// Region is us-east-1 where it is empty: what servers without regions expect.
	Region string `key:"region" env:"TARTARUS_S3_REGION"`
	// AccessKey and SecretKey are who asks.
	AccessKey string `key:"accessKey" env:"TARTARUS_S3_ACCESS_KEY" secret:"true"`
	SecretKey string `key:"secretKey" env:"TARTARUS_S3_SECRET_KEY" secret:"true"`
	// PathStyle puts the bucket into the path rather than the host name: what most servers but Amazon's need.
	PathStyle bool `key:"pathStyle" env:"TARTARUS_S3_PATH_STYLE"`
	// Prefix is put before the name of everything that is stored.
	Prefix string `key:"prefix" env:"TARTARUS_S3_PREFIX"`
}

// Hypnos says what is put to sleep, where that is enabled. Package hypnos has the arithmetic of the defaults.
type Hypnos struct {
	// IdleAfter is for how long nothing may have used a sandbox.
	IdleAfter time.Duration `key:"idleAfter" env:"TARTARUS_HYPNOS_IDLE_AFTER"`
	// CPUPercent is what it may use of one processor all the same.
	CPUPercent int `key:"cpuPercent" env:"TARTARUS_HYPNOS_CPU_PERCENT"`
	// MinAge is how old it must be.
	MinAge time.Duration `key:"minAge" env:"TARTARUS_HYPNOS_MIN_AGE"`
	// AtOnce is how many are put to sleep at the same time.
	AtOnce int `key:"atOnce" env:"TARTARUS_HYPNOS_AT_ONCE"`
}

// config is h in the words of package hypnos.
func (h Hypnos) config() hypnos.Config {
	return hypnos.Config{IdleAfter: h.IdleAfter, CPUPercent: float64(h.CPUPercent), MinAge: h.MinAge, AtOnce: h.AtOnce}
}

func defaultHypnos() Hypnos {
	d := hypnos.Default()
	return Hypnos{IdleAfter: d.IdleAfter, CPUPercent: int(d.CPUPercent), MinAge: d.MinAge, AtOnce: d.AtOnce}
}

// Heat says from how many processors kept busy on a sandbox is warm, hot or an inferno. Package phlegethon has the arithmetic of the defaults.
type Heat struct {
	Warm    float64 `key:"warm" env:"TARTARUS_HEAT_WARM"`
	Hot     float64 `key:"hot" env:"TARTARUS_HEAT_HOT"`
	Inferno float64 `key:"inferno" env:"TARTARUS_HEAT_INFERNO"`
	// Hint is by how many steps callers may move it with metadata tartarus.io/phlegethon.
	Hint int `key:"hint" env:"TARTARUS_HEAT_HINT"`
}

func (h Heat) thresholds() phlegethon.Thresholds {
	return phlegethon.Thresholds{Warm: h.Warm, Hot: h.Hot, Inferno: h.Inferno, Hint: h.Hint}
}

func defaultHeat() Heat {
	t := phlegethon.DefaultThresholds()
	return Heat{Warm: t.Warm, Hot: t.Hot, Inferno: t.Inferno, Hint: t.Hint}
}

// Typhon says what is a strike against a sandbox, and how many put it into quarantine. Package typhon has the arithmetic of the defaults.
type Typhon struct {
	// Strikes of one sandbox within Window put it into quarantine; 0 never does.
	Strikes int `key:"strikes" env:"TARTARUS_TYPHON_STRIKES"`
	// TemplateStrikes are those of all sandboxes of one template of one tenant, TenantStrikes of all of a tenant.
	TemplateStrikes int `key:"templateStrikes" env:"TARTARUS_TYPHON_TEMPLATE_STRIKES"`
	TenantStrikes   int `key:"tenantStrikes" env:"TARTARUS_TYPHON_TENANT_STRIKES"`
	// Window is for how long a strike counts.
	Window time.Duration `key:"window" env:"TARTARUS_TYPHON_WINDOW"`
	// Packets that a sandbox may not send make a flood, when it sends so many in a minute; Targets that it may not reach make a scan.
	Packets int `key:"packets" env:"TARTARUS_TYPHON_PACKETS"`
	Targets int `key:"targets" env:"TARTARUS_TYPHON_TARGETS"`
}

func defaultTyphon() Typhon {
	r, l := typhon.DefaultRule(), typhon.DefaultLimits()
	return Typhon{Strikes: r.Sandbox, TemplateStrikes: r.Template, TenantStrikes: r.Tenant, Window: r.Window, Packets: int(l.Packets), Targets: l.Targets}
}

func (t Typhon) validate() error {
	for name, n := range map[string]int{"strikes": t.Strikes, "templateStrikes": t.TemplateStrikes, "tenantStrikes": t.TenantStrikes, "packets": t.Packets, "targets": t.Targets} {
		if n < 0 {
			return tartarus.Errorf(tartarus.Invalid, "typhon.%s: %d is below 0", name, n)
		}
	}
	if t.Window < time.Minute || t.Window > 30*24*time.Hour {
		return tartarus.Errorf(tartarus.Invalid, "typhon.window: %s is not between 1m and 720h", t.Window)
	}
	return nil
}

// Warm sizes the pools of machines that wait, of each template that is in use. How many wait follows how many are asked for.
type Warm struct {
	// MemoryMB is how many MiB the waiting machines may take together; 0 switches the pools off, and every create makes its machine.
	MemoryMB int64 `key:"memory" env:"TARTARUS_WARM_MEMORY"`
	// Keep is how many of each template in use are kept, however seldom it is asked for.
	Keep int `key:"keep" env:"TARTARUS_WARM_KEEP"`
	// Most is how many of one template wait at most.
	Most int `key:"most" env:"TARTARUS_WARM_MOST"`
}

// Audit says what becomes of the audit log, in the folder audit of the data folder.
type Audit struct {
	// Retention is how long records are kept. 0 keeps them for ever.
	Retention time.Duration `key:"retention" env:"TARTARUS_AUDIT_RETENTION"`
	// ArchiveFor sends each segment of the log that has ended to the bucket of s3, under audit/, where nobody can remove it for that long if the
	// bucket has object lock. 0 sends none.
	ArchiveFor time.Duration `key:"archiveFor" env:"TARTARUS_AUDIT_ARCHIVE_FOR"`
	// ArchiveEvery is how old a segment grows before it ends, where they are archived: how far the archive may be behind.
	ArchiveEvery time.Duration `key:"archiveEvery" env:"TARTARUS_AUDIT_ARCHIVE_EVERY"`
}

// Network says where network slots come from.
type Network struct {
	// Base is the IPv4 range that slots are cut from, two addresses each: a /22 or wider that nobody routes.
	Base netip.Prefix `key:"base" env:"TARTARUS_NETWORK_BASE"`
	// Slots is how many slots are kept ready ahead of need.
	Slots int `key:"slots" env:"TARTARUS_NETWORK_SLOTS"`
}

// EdgeOff is the address of an edge that is switched off.
const EdgeOff = "off"

// slotAddresses is the size of a slot: a /31 has the guest's address and the host's.
const slotAddresses = 2

// Default is the configuration of a single machine without any file, flag or variable.
func Default() Config {
	return Config{
		DataDir:   "/var/lib/tartarus",
		APIAddr:   "127.0.0.1:7300",
		EdgeAddr:  "127.0.0.1:7443",
		Domain:    "tartarus.localhost", // *.localhost resolves to loopback without a DNS server (RFC 6761)
		Runtime:   "auto",
		NodeName:  defaultNodeName(),
		LogLevel:  "info",
		LogFormat: "text",
		Limits: Limits{
			DefaultTimeout: 5 * time.Minute, // what SDKs document as theirs
			MaxTimeout:     24 * time.Hour,
			DefaultVCPU:    min(2, runtime.NumCPU()),
			// Shares, not cores, are given out, so a sandbox may ask for up to 8 even on a small host.
			MaxVCPU:         max(8, runtime.NumCPU()),
			DefaultMemoryMB: 1024, // the SDKs' template default
			MaxMemoryMB:     16 << 10,
			DefaultDiskMB:   4 << 10, // sparse: only what is written takes space
			MaxDiskMB:       64 << 10,
			MaxVolumeMB:     10 << 10,
			// A browser with its helpers runs at 300 threads; a fork bomb stops here, at about 100 MB of host kernel memory.
			MaxPIDs: 4096,
			// What heeds SIGTERM ends within milliseconds; two seconds flush a database, and hold up nobody who waits.
			EndGrace: 2 * time.Second,
			MaxGrace: 10 * time.Minute, // the guest agent's own bound
			// An idle sandbox takes up to 25 MB: 500 of them are 12.5 GB.
			MaxSandboxes: 500,
		},
		Hypnos: defaultHypnos(),
		Typhon: defaultTyphon(),
		Heat:   defaultHeat(),
		Warm: Warm{
			// A waiting machine of an interpreter takes 20 to 40 MB: an eighth of a small host holds a burst of fifty.
			MemoryMB: hostMemoryMB() / 8,
			// One for the next who comes, one more for whoever comes before it is replaced.
			Keep: 2,
			// What two processors replace in ten seconds.
			Most: 100,
		},
		S3:    S3{PathStyle: true},
		Redis: Redis{Prefix: "tartarus:"},
		Fleet: Fleet{Addr: "127.0.0.1:7301", NodeLost: 10 * time.Minute},
		// What payment and health regulators ask for, a year online (PCI DSS 4.0, 10.5.1).
		Audit: Audit{Retention: 365 * 24 * time.Hour, ArchiveEvery: time.Hour},
		// None: nothing counts as signed.
		SignatureKeys: map[string]string{},
		OIDC:          OIDC{RoleClaim: "groups", Roles: map[string]string{}, Tenants: map[string]string{}, Tenant: tenant.Default},
		Network: Network{
			// RFC 2544 benchmarking range: never routed on the Internet. A /15 holds 131,072 addresses, 65,536 slots.
			Base: netip.MustParsePrefix("198.18.0.0/15"),
			// A burst that finds no slot waits about 10 ms for one; eight cover two cores starting 25 sandboxes a second
			// while the pool refills.
			Slots: 8,
		},
	}
}

func defaultNodeName() string {
	if h, err := os.Hostname(); err == nil && nodeName.MatchString(strings.ToLower(h)) {
		return strings.ToLower(h)
	}
	return "node"
}

var (
	nodeName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	domainName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*(:[0-9]{1,5})?$`)
	plainName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
)

// Validate reports everything that is wrong with c at once, each with the key to change.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, tartarus.Errorf(tartarus.Invalid, format, args...))
		}
	}
	check(filepath.IsAbs(c.DataDir), "dataDir %q must be an absolute path", c.DataDir)
	check(c.VolumesDir == "" || filepath.IsAbs(c.VolumesDir), "volumesDir %q must be an absolute path, or empty", c.VolumesDir)
	check(validAddr(c.APIAddr), "apiAddr %q must be host:port", c.APIAddr)
	check(c.EdgeAddr == "" || c.EdgeAddr == EdgeOff || validAddr(c.EdgeAddr), "edgeAddr %q must be host:port, or off", c.EdgeAddr)
	check(c.MetricsAddr == "" || validAddr(c.MetricsAddr), "metricsAddr %q must be host:port, or empty to switch it off", c.MetricsAddr)
	check(domainName.MatchString(c.Domain), "domain %q must be a lower-case host name", c.Domain)
	check((c.EdgeCertFile == "") == (c.EdgeKeyFile == ""), "edgeCertFile and edgeKeyFile go together")
	check(plainName.MatchString(c.Runtime), "runtime %q must be auto or the name of a runtime", c.Runtime)
	check(nodeName.MatchString(c.NodeName), "nodeName %q must be lower-case letters, digits, dots and dashes, at most 63", c.NodeName)
	check(slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel), "logLevel %q must be debug, info, warn or error", c.LogLevel)
	check(c.LogFormat == "text" || c.LogFormat == "json", "logFormat %q must be text or json", c.LogFormat)
	check(c.Audit.Retention >= 0, "audit.retention %s must not be negative", c.Audit.Retention)
	check(c.Audit.ArchiveFor >= 0, "audit.archiveFor %s must not be negative", c.Audit.ArchiveFor)
	check(c.Audit.ArchiveEvery >= time.Second, "audit.archiveEvery %s must be at least 1s", c.Audit.ArchiveEvery)
	check(c.Audit.ArchiveFor == 0 || c.S3.Bucket != "", "audit.archiveFor is set and s3.bucket (TARTARUS_S3_BUCKET) is not")
	for name := range c.SignatureKeys {
		check(plainName.MatchString(name), "signatureKeys: %q must be lower-case letters, digits and dashes", name)
	}
	errs = append(errs, c.Limits.validate()...)
	errs = append(errs, c.Warm.validate()...)
	errs = append(errs, c.Rates.validate()...)
	if err := c.Heat.thresholds().Validate(); err != nil {
		return err
	}
	if err := c.Typhon.validate(); err != nil {
		return err
	}
	if err := c.Hypnos.config().Validate(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, c.Network.validate(c.Limits.MaxSandboxes)...)
	errs = append(errs, c.Snapshots.validate()...)
	errs = append(errs, c.S3.validate()...)
	errs = append(errs, c.Redis.validate()...)
	errs = append(errs, c.Fleet.validate(c.Part)...)
	if err := c.OIDC.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (l Limits) validate() (errs []error) {
	between := func(key string, v, lo, hi int64) {
		if v < lo || v > hi {
			errs = append(errs, tartarus.Errorf(tartarus.Invalid, "limits.%s %d must be between %d and %d", key, v, lo, hi))
		}
	}
	if l.DefaultTimeout < time.Second || l.DefaultTimeout > l.MaxTimeout {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "limits.defaultTimeout %s must be between 1s and limits.maxTimeout %s", l.DefaultTimeout, l.MaxTimeout))
	}
	if l.MaxGrace < 0 || l.MaxGrace > 10*time.Minute {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "limits.maxGrace %s must be between 0s and 10m", l.MaxGrace))
	}
	if l.EndGrace < 0 || l.EndGrace > l.MaxGrace {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "limits.endGrace %s must be between 0s and limits.maxGrace %s", l.EndGrace, l.MaxGrace))
	}
	between("maxVCPU", int64(l.MaxVCPU), 1, 256)
	between("defaultVCPU", int64(l.DefaultVCPU), 1, int64(l.MaxVCPU))
	between("maxMemoryMB", l.MaxMemoryMB, 128, 4<<20) // 128 is the wire protocol's minimum, 4 TiB beyond any host
	between("defaultMemoryMB", l.DefaultMemoryMB, 128, l.MaxMemoryMB)
	between("maxDiskMB", l.MaxDiskMB, 1, 16<<20)
	between("defaultDiskMB", l.DefaultDiskMB, 1, l.MaxDiskMB)
	between("maxVolumeMB", l.MaxVolumeMB, 1, 16<<20)
	between("maxPIDs", l.MaxPIDs, 16, 4<<20) // 4 Mi is the kernel's own PID_MAX_LIMIT
	between("maxSandboxes", int64(l.MaxSandboxes), 1, 100_000)
	between("nodeVCPU", int64(l.NodeVCPU), 0, 1<<20)
	between("nodeMemoryMB", l.NodeMemoryMB, 0, 4<<30) // 4 PiB
	return errs
}

func (w Warm) validate() (errs []error) {
	if w.MemoryMB < 0 || w.MemoryMB > 16<<20 {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "warm.memory %d must be 0 to switch warm machines off, or MiB up to %d", w.MemoryMB, 16<<20))
	}
	if w.Most < 0 || w.Most > 10_000 || w.Keep < 0 || w.Keep > w.Most {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "warm.keep %d must be between 0 and warm.most, and warm.most %d at most 10000", w.Keep, w.Most))
	}
	return errs
}

func (n Network) validate(sandboxes int) (errs []error) {
	if !n.Base.IsValid() || !n.Base.Addr().Is4() || n.Base != n.Base.Masked() || n.Base.Bits() < 8 || n.Base.Bits() > 22 {
		return []error{tartarus.Errorf(tartarus.Invalid, "network.base %q must be an IPv4 range such as 198.18.0.0/15, between /8 and /22", n.Base)}
	}
	slots := 1 << (32 - n.Base.Bits()) / slotAddresses
	if sandboxes > slots {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "network.base %s holds %d sandboxes, fewer than limits.maxSandboxes %d", n.Base, slots, sandboxes))
	}
	if n.Slots < 0 || n.Slots > slots {
		errs = append(errs, tartarus.Errorf(tartarus.Invalid, "network.slots %d must be between 0 and %d", n.Slots, slots))
	}
	return errs
}

func validAddr(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return false
	}
	_, err = net.LookupPort("tcp", port)
	return err == nil
}
