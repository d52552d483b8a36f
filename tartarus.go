// Package tartarus holds the nouns of the system: what a sandbox, its resources, its
// network and its life cycle are. It imports the standard library only, so that every
// other package can speak in these words without depending on one another.
package tartarus

import (
	"crypto/rand"
	"time"
)

// AgentPort is the port on which the guest agent listens inside every sandbox.
const AgentPort = 49983

// AgentVersion is the version the guest agent reports to clients. SDKs gate features on
// it; 0.6.13 is the wire revision that the agent implements.
const AgentVersion = "0.6.13"

// AgentPath is where every template carries the guest agent.
const AgentPath = "/usr/bin/tartarus-guest"

// Spec is what a caller asked for, after defaults and policy amended it. It is fixed
// when a sandbox is created.
type Spec struct {
	ID         string                   `json:"id"`
	Tenant     string                   `json:"tenant"`
	TemplateID string                   `json:"templateID"`
	BuildID    string                   `json:"buildID,omitempty"`  // the version of the template; empty is the current one
	Template   string                   `json:"template,omitempty"` // the name it was asked by
	Resources  Resources                `json:"resources"`
	Metadata   map[string]string        `json:"metadata,omitempty"`
	Env        map[string]string        `json:"env,omitempty"`
	Network    Network                  `json:"network"`
	Lifecycle  Lifecycle                `json:"lifecycle"`
	Volumes    []VolumeMount            `json:"volumes,omitempty"`
	Identity   map[string]IdentityToken `json:"identity,omitempty"` // by name
	Timeout    time.Duration            `json:"timeout"`
	Runtime    string                   `json:"runtime,omitempty"` // demanded runtime; empty lets the node choose
	Secrets    Secrets                  `json:"secrets"`
	RequestID  string                   `json:"requestID,omitempty"`
	SnapshotID string                   `json:"snapshotID,omitempty"` // restored from this instead of booted from the template
	Heat       string                   `json:"heat,omitempty"`       // how much work it is expected to make: cold, warm, hot or inferno
	// Confined says why it runs in quarantine, for good: only on nodes labelled LabelTyphon, with nothing but its agent to be reached by and
	// nothing to reach. A judge said so, or it stems from a sandbox that was in quarantine. Empty for all others.
	Confined string `json:"confined,omitempty"`
}

// Secrets are a sandbox's bearer tokens. They travel in records and jobs, never in logs.
type Secrets struct {
	AgentToken   string `json:"agentToken,omitempty"`   // X-Access-Token of the guest agent
	TrafficToken string `json:"trafficToken,omitempty"` // needed by clients when public traffic is off
}

// LogValue keeps tokens out of structured logs.
func (Secrets) LogValue() string { return "[redacted]" }

// String keeps tokens out of formatted messages.
func (Secrets) String() string { return "[redacted]" }

// Resources limit one sandbox.
type Resources struct {
	VCPU     int   `json:"vcpu"`     // whole virtual CPUs
	MemoryMB int64 `json:"memoryMB"` // MiB of memory, guest and its overhead together
	DiskMB   int64 `json:"diskMB"`   // MiB the writable layer may hold
	PIDs     int64 `json:"pids"`     // processes and threads inside the guest
}

// Network says what may leave and enter a sandbox.
type Network struct {
	// Internet off means that nothing leaves but answers to what came in.
	Internet bool `json:"internet"`
	// Allow and Deny hold addresses, CIDRs and (Allow only) domain names; Allow wins over Deny,
	// but nothing a caller asks for opens the always-denied ranges.
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
	// PublicTraffic off means that ingress needs the traffic token.
	PublicTraffic bool `json:"publicTraffic"`
	// DNS are name servers to ask instead of the host's, reachable whatever else is.
	DNS []string `json:"dns,omitempty"`
	// Proxy is what outgoing TCP goes through.
	Proxy *EgressProxy `json:"proxy,omitempty"`
	// Transforms are headers put into HTTPS requests, by host name or *.domain. Values may hold placeholders.
	Transforms      map[string]map[string]string `json:"transforms,omitempty"`
	MaskRequestHost string                       `json:"maskRequestHost,omitempty"`
	HTTPSPorts      []int                        `json:"httpsPorts,omitempty"`
}

// EgressProxy is a SOCKS5 server. It travels in records and jobs, never in logs.
type EgressProxy struct {
	Address    string `json:"address"` // host:port
	Username   string `json:"username,omitempty"`
	Password   string `json:"password,omitempty"`
	TLS        bool   `json:"tls,omitempty"`
	ServerName string `json:"serverName,omitempty"`
	CACert     string `json:"caCert,omitempty"` // PEM
}

// LogValue keeps the password out of structured logs.
func (EgressProxy) LogValue() string { return "[redacted]" }

// String keeps the password out of formatted messages.
func (EgressProxy) String() string { return "[redacted]" }

// IdentityToken is a token by which a sandbox can prove who it is, where a header's placeholder names it.
type IdentityToken struct {
	Audience string `json:"audience"`
	Type     string `json:"type"`
}

// VolumeMount puts a volume into a sandbox.
type VolumeMount struct {
	ID   string `json:"id"`
	Name string `json:"name"` // as it was asked for
	Path string `json:"path"` // in the sandbox: absolute and clean
}

// Lifecycle says what happens when the time is up, and how it ends.
type Lifecycle struct {
	PauseOnTimeout bool `json:"pauseOnTimeout,omitempty"`
	PauseMemory    bool `json:"pauseMemory,omitempty"` // keep memory, not only the disk
	AutoResume     bool `json:"autoResume,omitempty"`
	// Grace is how long the guest has to end in good order, whoever ends it. Nil leaves it to the template and the node.
	Grace *time.Duration `json:"grace,omitempty"`
	// MaxGrace is the longest that it may have, whoever asks. Nil leaves it to the node.
	MaxGrace *time.Duration `json:"maxGrace,omitempty"`
	// Checkpoint and ExportLogs are done before it is killed, whoever ends it.
	Checkpoint bool `json:"checkpoint,omitempty"`
	ExportLogs bool `json:"exportLogs,omitempty"`
	// Awake keeps it from being hibernated, however idle it is.
	Awake bool `json:"awake,omitempty"`
}

// Sandbox is one isolated environment, as the node that owns it last described it.
type Sandbox struct {
	Spec
	Node      string        `json:"node,omitempty"`
	Phase     Phase         `json:"phase"`
	Reason    Reason        `json:"reason,omitempty"`
	Message   string        `json:"message,omitempty"` // one sentence for people, beside Reason
	Driver    string        `json:"driver,omitempty"`  // runtime that really runs it
	Tier      Tier          `json:"tier,omitempty"`
	CreatedAt time.Time     `json:"createdAt"`
	StartedAt time.Time     `json:"startedAt,omitzero"`
	Deadline  time.Time     `json:"deadline,omitzero"` // when its time is up
	EndedAt   time.Time     `json:"endedAt,omitzero"`
	Ending    *Ending       `json:"ending,omitempty"`    // a termination that is pending, or the one that ended it; replaced, never changed
	CPU       time.Duration `json:"cpu,omitempty"`       // processor time that it took, once it has ended
	DiskOnly  bool          `json:"diskOnly,omitempty"`  // paused without its memory
	AgentLost bool          `json:"agentLost,omitempty"` // paused while its agent did not answer: it can only be rebooted
	Saved     string        `json:"saved,omitempty"`     // id of the snapshot that it is while it is paused
	// Quarantine says why it stands still, while it does.
	Quarantine *Quarantine `json:"quarantine,omitempty"`
	// Revision counts changes; stores compare it before they set.
	Revision int64 `json:"revision"`
}

// Tier is how strongly a sandbox is kept apart from its host.
type Tier string

// The tiers, weakest first.
const (
	TierNone       Tier = "none"        // no isolation: tests and benchmarks only
	TierUserKernel Tier = "user-kernel" // system calls served by a user-space kernel
	TierEmulated   Tier = "emulated-vm" // a virtual machine without hardware support
	TierHardware   Tier = "hardware-vm" // a virtual machine on hardware virtualisation
)

var tierRank = map[Tier]int{TierNone: 1, TierUserKernel: 2, TierEmulated: 3, TierHardware: 4}

// AtLeast reports whether t isolates as strongly as want. An unknown tier satisfies nothing and is satisfied by nothing.
func (t Tier) AtLeast(want Tier) bool {
	return tierRank[t] > 0 && tierRank[want] > 0 && tierRank[t] >= tierRank[want]
}

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// NewID makes an identifier that fits in a host name: the letter i and 20 random lower-case
// letters and digits, about 103 bits.
func NewID() string { return "i" + randomString(20) }

// NewTemplateID makes a template's identifier: 20 random lower-case letters and digits.
func NewTemplateID() string { return randomString(20) }

func randomString(n int) string {
	out := make([]byte, 0, n)
	var buf [32]byte
	for len(out) < n {
		rand.Read(buf[:]) // never fails: crypto/rand aborts the program instead
		for _, b := range buf {
			// 252 = 7*36: larger values would favour the alphabet's start.
			if b < 252 && len(out) < n {
				out = append(out, idAlphabet[int(b)%len(idAlphabet)])
			}
		}
	}
	return string(out)
}

// ValidID reports whether s has the shape of a sandbox's identifier. Ids become file names,
// host names and cgroup names: nothing but lower-case letters and digits, at most 32.
func ValidID(s string) bool {
	if len(s) == 0 || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
