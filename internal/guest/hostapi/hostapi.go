// Package hostapi holds the bodies of the agent's routes that only its host may call. Both ends use these types; a
// field that one end does not know is ignored by it, so that host and template may differ in age.
package hostapi

import "time"

// Paths are the first elements of the paths of all these routes. Whoever carries traffic from elsewhere to the agent comes from the host too, and must
// not let them through.
var Paths = []string{"init", "inspect", "logs", "shutdown", "terminate", "tunnel", "volume"}

// Init tells a guest who it is. What is empty changes nothing, except AccessToken.
type Init struct {
	EnvVars        map[string]string `json:"envVars,omitempty"` // added to those of earlier calls
	AccessToken    string            `json:"accessToken"`       // empty: the agent asks for none
	Timestamp      time.Time         `json:"timestamp,omitzero"`
	DefaultUser    string            `json:"defaultUser,omitempty"`
	DefaultWorkdir string            `json:"defaultWorkdir,omitempty"`

	SandboxID  string            `json:"sandboxID,omitempty"`
	TemplateID string            `json:"templateID,omitempty"`
	Hostname   string            `json:"hostname,omitempty"`
	MachineID  string            `json:"machineID,omitempty"`  // 32 hexadecimal digits
	Entropy    string            `json:"entropy,omitempty"`    // base64
	Hosts      map[string]string `json:"hosts,omitempty"`      // name to address
	DNSServers []string          `json:"dnsServers,omitempty"` // addresses
	CABundle   string            `json:"caBundle,omitempty"`   // certificates to trust beside the template's, in PEM
}

// Shutdown is the body of POST /shutdown.
type Shutdown struct {
	GraceMs int64 `json:"graceMs"`
}

// Alive is its answer: the numbers of processes that could not be ended.
type Alive struct {
	Alive []int `json:"alive"`
}

// Terminate is the body of POST /terminate: the sandbox is about to end. Hooks run, then everyone gets SIGTERM; the answer comes when nobody is left or the
// grace is over. Nothing is killed, because the termination may still be cancelled.
type Terminate struct {
	GraceMs int64  `json:"graceMs"`
	Reason  string `json:"reason"`
	// HooksOnly sends no SIGTERM: a checkpoint is to hold the processes as they are.
	HooksOnly bool `json:"hooksOnly,omitempty"`
}

// Terminated is its answer.
type Terminated struct {
	Alive []int  `json:"alive"` // processes that did not end
	Hooks []Hook `json:"hooks"` // in the order in which they ran
}

// Hook is how an executable of HooksDir did.
type Hook struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"` // empty when it ended with status 0
}

// HooksDir is where, in the guest, executables lie that run before it ends: as root, in the order of their names.
const HooksDir = "/etc/tartarus/hooks/terminate.d"

// LogEntry is one line of GET /logs.
type LogEntry struct {
	Seq     int64          `json:"seq"` // counts up by one; a gap tells what was dropped
	Time    time.Time      `json:"timestamp"`
	Level   string         `json:"level"`
	Message string         `json:"message"`
	Fields  map[string]any `json:"fields,omitempty"`
}

// Metrics is what the guest uses now. Sizes are bytes unless the name says otherwise.
type Metrics struct {
	Time        int64   `json:"ts"` // seconds since 1970
	CPUCount    int     `json:"cpu_count"`
	CPUUsed     float64 `json:"cpu_used_pct"` // of all processors together, since the call before
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

// TunnelProtocol is what GET /tunnel?port=N upgrades a connection to: the bytes of a TCP connection to that port of the
// guest's loopback address.
const TunnelProtocol = "tartarus-tcp"
