// Package api is the public HTTP API as data: the JSON bodies that Olympus and its clients exchange, and the OpenAPI document
// that describes them. Field names and presence follow the protocol of the E2B SDKs; what we add to it is optional in requests
// and ignored by those SDKs in responses.
package api

import (
	"encoding/json"
	"time"
)

// Headers of the API that are not HTTP's own.
const (
	HeaderKey          = "X-Api-Key"                // the API key
	HeaderSandbox      = "E2b-Sandbox-Id"           // routes a request on the API's port to a sandbox
	HeaderPort         = "E2b-Sandbox-Port"         // and to this port of it
	HeaderAgentToken   = "X-Access-Token"           // the guest agent's token
	HeaderTrafficToken = "E2b-Traffic-Access-Token" // needed where public traffic is off
	HeaderIdempotency  = "Idempotency-Key"
	HeaderShouldRetry  = "Should-Retry"
	HeaderNextToken    = "X-Next-Token"
	HeaderTotalRunning = "X-Total-Running"
)

// Error is the body of every answer that is not a success.
type Error struct {
	Code      int    `json:"code"` // the HTTP status again
	Message   string `json:"message"`
	ErrorCode string `json:"error_code,omitempty"` // the kind of error, or a finer stable code
	// Reasons are what the judges said one by one, where they refused.
	Reasons []Reason `json:"reasons,omitempty"`
}

// NewSandbox is the body of a create. Absent fields take the server's defaults.
type NewSandbox struct {
	TemplateID          string            `json:"templateID"`
	Timeout             *int64            `json:"timeout,omitempty"` // seconds
	Metadata            map[string]string `json:"metadata,omitempty"`
	EnvVars             map[string]string `json:"envVars,omitempty"`
	Secure              *bool             `json:"secure,omitempty"` // first version only; the second always is
	AutoPause           *bool             `json:"autoPause,omitempty"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory,omitempty"`
	AutoResume          *AutoResume       `json:"autoResume,omitempty"`
	AllowInternetAccess *bool             `json:"allow_internet_access,omitempty"`
	Network             *NetworkConfig    `json:"network,omitempty"`
	VolumeMounts        []VolumeMount     `json:"volumeMounts,omitempty"`
	MCP                 json.RawMessage   `json:"mcp,omitempty"` // the SDKs set the gateway up themselves
	IAM                 *IAM              `json:"iam,omitempty"`

	// Ours.
	Runtime    string `json:"runtime,omitempty"`
	Tier       string `json:"tier,omitempty"` // weakest isolation that will do
	CPUCount   *int64 `json:"cpuCount,omitempty"`
	MemoryMB   *int64 `json:"memoryMB,omitempty"`
	DiskSizeMB *int64 `json:"diskSizeMB,omitempty"`
	Grace      *int64 `json:"terminationGrace,omitempty"` // seconds that it has to end in good order, whoever ends it
	Hibernate  *bool  `json:"hibernate,omitempty"`        // false keeps it awake however idle it is
}

// AutoResume says whether traffic wakes a paused sandbox.
type AutoResume struct {
	Enabled bool `json:"enabled"`
}

// VolumeMount puts a volume into a sandbox.
type VolumeMount struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// NetworkConfig is what may leave and enter a sandbox. In an update AllowInternetAccess takes the place of the three ingress
// fields, and what is absent is cleared.
type NetworkConfig struct {
	AllowOut            []string                 `json:"allowOut,omitempty"`
	DenyOut             []string                 `json:"denyOut,omitempty"`
	AllowPublicTraffic  *bool                    `json:"allowPublicTraffic,omitempty"`
	MaskRequestHost     string                   `json:"maskRequestHost,omitempty"`
	HTTPSPorts          []int                    `json:"httpsPorts,omitempty"`
	AllowInternetAccess *bool                    `json:"allow_internet_access,omitempty"`
	EgressProxy         *EgressProxy             `json:"egressProxy,omitempty"`
	Rules               map[string][]NetworkRule `json:"rules,omitempty"` // by domain or *.domain
	DNSServers          []string                 `json:"dnsServers,omitempty"`
}

// EgressProxy is a SOCKS5 server that outgoing TCP goes through.
type EgressProxy struct {
	Address  string    `json:"address"` // host:port
	Username string    `json:"username,omitempty"`
	Password string    `json:"password,omitempty"` // never returned
	TLS      *ProxyTLS `json:"tls,omitempty"`
}

// ProxyTLS protects the way to an egress proxy.
type ProxyTLS struct {
	Enabled    bool   `json:"enabled"`
	ServerName string `json:"serverName,omitempty"`
	CACert     string `json:"caCert,omitempty"` // PEM
}

// NetworkRule is what is done to HTTPS requests to a domain.
type NetworkRule struct {
	Transform *Transform `json:"transform,omitempty"`
}

// Transform puts headers into requests, over those of the same name. Values may hold ${e2b.secrets.NAME} and
// ${e2b.identity.tokens.NAME}.
type Transform struct {
	Headers map[string]string `json:"headers,omitempty"`
}

// IAM says which tokens a sandbox can prove itself with.
type IAM struct {
	Tokens map[string]IAMToken `json:"tokens,omitempty"`
}

// IAMToken is one of them.
type IAMToken struct {
	Audience  string `json:"audience"`
	TokenType string `json:"tokenType"` // JWT-SVID
}

// PauseRequest is the body of a pause.
type PauseRequest struct {
	Memory              *bool `json:"memory,omitempty"`              // false keeps only the files: it boots anew when it comes back
	RequireHealthyGuest bool  `json:"requireHealthyGuest,omitempty"` // refuse when the guest agent does not answer
}

// SnapshotRequest is the body of a snapshot.
type SnapshotRequest struct {
	Name   string `json:"name,omitempty"`   // name or name:tag; an older snapshot of this name loses it
	Memory *bool  `json:"memory,omitempty"` // false keeps only the files: what is made from it boots
}

// ForkRequest is the body of a fork.
type ForkRequest struct {
	Count   *int64 `json:"count,omitempty"`   // how many clones, 1 to 100
	Timeout *int64 `json:"timeout,omitempty"` // their time in seconds
}

// ForkResult is how one clone went: one of the two is there.
type ForkResult struct {
	Sandbox *Sandbox `json:"sandbox,omitempty"`
	Error   *Error   `json:"error,omitempty"`
}

// Snapshot is what a sandbox can be made from besides a template: its SnapshotID serves as templateID.
type Snapshot struct {
	SnapshotID string   `json:"snapshotID"` // tenant/name:tag where it has a name, else id:default
	Names      []string `json:"names"`

	// Ours.
	ID             string       `json:"id"`
	SandboxID      string       `json:"sandboxID"`  // of which it was taken
	TemplateID     string       `json:"templateID"` // on which it stands
	BuildID        string       `json:"buildID"`
	Memory         bool         `json:"memory"` // false: only the files
	Runtime        string       `json:"runtime"`
	RuntimeVersion string       `json:"runtimeVersion"`
	CPUModel       string       `json:"cpuModel"`
	Node           string       `json:"node,omitempty"` // that has it; absent when only the object store does
	CPUCount       int          `json:"cpuCount"`
	MemoryMB       int64        `json:"memoryMB"`
	DiskSizeMB     int64        `json:"diskSizeMB"`
	SizeBytes      int64        `json:"sizeBytes"`   // of its files
	StoredBytes    int64        `json:"storedBytes"` // that they take on disk
	CreatedAt      time.Time    `json:"createdAt"`
	Copy           CopyProgress `json:"copy"`
}

// CopyProgress says how far the copy of a snapshot into the object store is.
type CopyProgress struct {
	State      string `json:"state"` // local, hashing, copying, copied or failed
	DoneBytes  int64  `json:"doneBytes"`
	TotalBytes int64  `json:"totalBytes"`
	Error      string `json:"error,omitempty"`
}

// Sandbox is the answer to a create, connect or resume.
type Sandbox struct {
	SandboxID          string  `json:"sandboxID"`
	TemplateID         string  `json:"templateID"`
	ClientID           string  `json:"clientID"`
	EnvdVersion        string  `json:"envdVersion"`
	EnvdAccessToken    string  `json:"envdAccessToken,omitempty"`
	TrafficAccessToken string  `json:"trafficAccessToken,omitempty"`
	Domain             *string `json:"domain"`
	Alias              string  `json:"alias,omitempty"`
	Runtime            string  `json:"runtime,omitempty"`
	Tier               string  `json:"tier,omitempty"`
	Node               string  `json:"node,omitempty"`
}

// ListedSandbox is a sandbox in a listing.
type ListedSandbox struct {
	SandboxID    string            `json:"sandboxID"`
	TemplateID   string            `json:"templateID"`
	ClientID     string            `json:"clientID"`
	Alias        string            `json:"alias,omitempty"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	State        string            `json:"state"` // running, paused, or the phase where it is neither
	CPUCount     int               `json:"cpuCount"`
	MemoryMB     int64             `json:"memoryMB"`
	DiskSizeMB   int64             `json:"diskSizeMB"`
	EnvdVersion  string            `json:"envdVersion"`
	Metadata     map[string]string `json:"metadata"`
	VolumeMounts []VolumeMount     `json:"volumeMounts"`
	PauseMode    string            `json:"pauseMode,omitempty"`               // full or filesystem, while it is paused
	AgentLost    bool              `json:"envdUnresponsiveAtPause,omitempty"` // it can only be rebooted

	// Ours.
	Runtime  string `json:"runtime,omitempty"`
	Tier     string `json:"tier,omitempty"`
	Heat     string `json:"heat,omitempty"`     // cold, warm, hot or inferno
	Confined string `json:"confined,omitempty"` // why it runs in quarantine
	Node     string `json:"node,omitempty"`
	Phase    string `json:"phase"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
	// Termination is one that is pending, or how the one went that ended it.
	Termination *Termination `json:"termination,omitempty"`
}

// Placement is where a sandbox would go, and why.
type Placement struct {
	Heat    string  `json:"heat"`
	HeatWhy string  `json:"heatWhy"`
	Own     float64 `json:"own"`   // processors that one such sandbox keeps busy
	Crowd   float64 `json:"crowd"` // processors that all of its template keep busy
	// Confined says why it may only run in quarantine.
	Confined   string               `json:"confined,omitempty"`
	Node       string               `json:"node,omitempty"`
	Pool       string               `json:"pool,omitempty"` // empty: nodes for any heat
	Runtime    string               `json:"runtime,omitempty"`
	Warm       bool                 `json:"warm"`
	Full       bool                 `json:"full"` // its capacity is handed out already
	Refused    string               `json:"refused,omitempty"`
	Nodes      PlacementNodes       `json:"nodes"`
	Candidates []PlacementCandidate `json:"candidates"`
}

// PlacementNodes counts how the nodes that were looked at fared.
type PlacementNodes struct {
	Seen       int `json:"seen"`
	Fit        int `json:"fit"`
	Lost       int `json:"notAnswering"`
	Cordoned   int `json:"cordoned"`
	NoRuntime  int `json:"withoutRuntime"`
	TooSmall   int `json:"tooSmall"`
	Busy       int `json:"full"`
	NoTemplate int `json:"withoutTemplate"`
	Apart      int `json:"apart"` // on the other side of the quarantine
	OtherCPU   int `json:"otherProcessor"`
}

// PlacementCandidate is a node with room that was compared with others.
type PlacementCandidate struct {
	Node string  `json:"node"`
	Pool string  `json:"pool,omitempty"`
	Warm int     `json:"warm"`
	Near bool    `json:"near"`
	Load float64 `json:"load"`
}

// QuarantineRequest is the body of a quarantine and of a release.
type QuarantineRequest struct {
	Reason string `json:"reason"`
}

// Quarantined is a sandbox that is, or was, in quarantine.
type Quarantined struct {
	SandboxID  string    `json:"sandboxID"`
	Tenant     string    `json:"tenant"`
	TemplateID string    `json:"templateID"`
	Alias      string    `json:"alias,omitempty"`
	Node       string    `json:"node"`
	Phase      string    `json:"phase"`
	Since      time.Time `json:"since,omitzero"`
	By         string    `json:"by,omitempty"` // id of the key that asked for it
	Reason     string    `json:"reason,omitempty"`
	Snapshot   string    `json:"snapshot,omitempty"`
	Paused     bool      `json:"paused,omitempty"` // it slept already, and sleeps on when it is released
}

// Termination is how far the end of a sandbox has come.
type Termination struct {
	Reason   string    `json:"reason"`
	Message  string    `json:"message,omitempty"`
	Rung     string    `json:"rung"` // cordon, tell, keep or kill: until the last it can be cancelled
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until"`              // when the guest's time is up
	Killed   int       `json:"killed,omitempty"`   // processes that did not end by themselves
	Snapshot string    `json:"snapshot,omitempty"` // that was kept
	Notes    []string  `json:"notes,omitempty"`    // what did not go as it should
}

// SandboxDetail is everything about one sandbox.
type SandboxDetail struct {
	ListedSandbox
	Domain              *string        `json:"domain"`
	EnvdAccessToken     string         `json:"envdAccessToken,omitempty"`
	TrafficAccessToken  string         `json:"trafficAccessToken,omitempty"`
	AllowInternetAccess bool           `json:"allowInternetAccess"`
	Network             *NetworkConfig `json:"network,omitempty"`
	Lifecycle           *Lifecycle     `json:"lifecycle,omitempty"`
}

// Lifecycle says what happens when the time is up.
type Lifecycle struct {
	OnTimeout  string `json:"onTimeout"` // kill or pause
	AutoResume bool   `json:"autoResume"`
	Grace      *int64 `json:"terminationGrace,omitempty"` // seconds
	Hibernate  bool   `json:"hibernate"`                  // whether it may be, where the server does that
}

// ConnectRequest is the body of a connect or resume.
type ConnectRequest struct {
	Timeout   *int64 `json:"timeout,omitempty"` // seconds
	Memory    *bool  `json:"memory,omitempty"`  // false boots from the disk alone
	AutoPause *bool  `json:"autoPause,omitempty"`
}

// TimeoutRequest is the body of a timeout.
type TimeoutRequest struct {
	Timeout *int64 `json:"timeout"` // seconds from now
}

// RefreshRequest is the body of a refresh.
type RefreshRequest struct {
	Duration *int64 `json:"duration,omitempty"` // seconds from now
}

// Metric is one measurement of a sandbox. Sizes are bytes.
type Metric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"`
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// SandboxesMetrics holds the newest measurement of each asked sandbox that has one.
type SandboxesMetrics struct {
	Sandboxes map[string]Metric `json:"sandboxes"`
}

// LogEntry is one line of a sandbox's log.
type LogEntry struct {
	Timestamp time.Time         `json:"timestamp"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

// LogLine is a line in the first version of the log route.
type LogLine struct {
	Timestamp time.Time `json:"timestamp"`
	Line      string    `json:"line"`
}

// LogsV1 is the answer of the first version of the log route.
type LogsV1 struct {
	Logs       []LogLine  `json:"logs"`
	LogEntries []LogEntry `json:"logEntries"`
}

// Logs is the answer of the second version of the log route.
type Logs struct {
	Logs []LogEntry `json:"logs"`
}

// Team is a tenant, as the SDKs' command line knows it.
type Team struct {
	TeamID    string `json:"teamID"`
	Name      string `json:"name"`
	APIKey    string `json:"apiKey"` // always empty: keys are shown once, when they are made
	IsDefault bool   `json:"isDefault"`
}

// Template is a template in a listing.
type Template struct {
	TemplateID    string     `json:"templateID"`
	BuildID       string     `json:"buildID"`
	CPUCount      int        `json:"cpuCount"`
	MemoryMB      int64      `json:"memoryMB"`
	DiskSizeMB    int64      `json:"diskSizeMB"`
	Public        bool       `json:"public"`
	Aliases       []string   `json:"aliases"`
	Names         []string   `json:"names"`
	CreatedAt     time.Time  `json:"createdAt"`
	UpdatedAt     time.Time  `json:"updatedAt"`
	CreatedBy     *string    `json:"createdBy"`
	LastSpawnedAt *time.Time `json:"lastSpawnedAt"`
	SpawnCount    int64      `json:"spawnCount"`
	BuildCount    int        `json:"buildCount"`
	EnvdVersion   string     `json:"envdVersion"`
	BuildStatus   string     `json:"buildStatus"`
}

// TemplateAlias is the template that a name means.
type TemplateAlias struct {
	TemplateID string `json:"templateID"`
	Public     bool   `json:"public"`
}

// Node is a machine that runs sandboxes, for operators.
type Node struct {
	Name      string             `json:"name"`
	Status    string             `json:"status"` // ready, cordoned or lost
	Labels    map[string]string  `json:"labels"`
	Runtimes  map[string]Runtime `json:"runtimes"`
	Capacity  Resources          `json:"capacity"`
	Allocated Resources          `json:"allocated"`
	Sandboxes int                `json:"sandboxes"`
	CPUModel  string             `json:"cpuModel,omitempty"`
	Version   string             `json:"version"`
	LeaseEnds time.Time          `json:"leaseEnds"`
}

// LabelsChange sets labels of a node; null takes one away.
type LabelsChange map[string]*string

// DrainRequest asks for one step of emptying a node.
type DrainRequest struct {
	End  bool `json:"end,omitempty"`  // end what is left, with the reason drained
	Move bool `json:"move,omitempty"` // what runs or is paused goes on on another node, by way of the object store
}

// Drain is how far a node's emptying has come.
type Drain struct {
	Node  string         `json:"node"`
	Ended int            `json:"ended"` // by this step
	Moved int            `json:"moved"` // likewise
	Left  []DrainSandbox `json:"left"`  // what the node still holds, at most 1000
}

// DrainSandbox is a sandbox that a drain waits for.
type DrainSandbox struct {
	SandboxID string     `json:"sandboxID"`
	Tenant    string     `json:"tenant"`
	Phase     string     `json:"phase"`
	EndAt     *time.Time `json:"endAt,omitempty"` // when its time is up; a paused one has none
	Why       string     `json:"why,omitempty"`   // it was not moved
}

// Job is a piece of queued work, for operators. What it carries is not shown: it has tokens in it.
type Job struct {
	ID          string     `json:"id"` // of a create also the sandbox's
	Tenant      string     `json:"tenant"`
	Node        string     `json:"node"`
	Kind        string     `json:"kind"`
	State       string     `json:"state"` // waiting, leased, done, dead or cancelled
	Attempt     int        `json:"attempt"`
	MaxAttempts int        `json:"maxAttempts"`
	Position    int        `json:"position,omitempty"` // among what waits for its node
	Reason      string     `json:"reason,omitempty"`
	EnqueuedAt  time.Time  `json:"enqueuedAt"`
	Deadline    *time.Time `json:"deadline,omitempty"`
	EndedAt     *time.Time `json:"endedAt,omitempty"`
}

// PurgeRequest says which ended jobs are forgotten.
type PurgeRequest struct {
	OlderThanSeconds int64 `json:"olderThanSeconds"` // since they ended; 0 is all of them
}

// Purged is how many were forgotten.
type Purged struct {
	Purged int `json:"purged"`
}

// TokenRequest asks for a token that lets a node join the fleet.
type TokenRequest struct {
	Node    string `json:"node,omitempty"`    // the one node that may use it; empty: any that is not there yet
	Seconds int64  `json:"seconds,omitempty"` // how long it is good; default 600
}

// Token lets one node join the fleet, once.
type Token struct {
	Token     string    `json:"token"`
	Node      string    `json:"node,omitempty"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Runtime is a runtime that a node offers.
type Runtime struct {
	Tier    string `json:"tier"`
	Version string `json:"version,omitempty"`
}

// Resources are a node's or a sandbox's share of a machine.
type Resources struct {
	VCPU     int   `json:"vcpu"`
	MemoryMB int64 `json:"memoryMB"`
	DiskMB   int64 `json:"diskMB"`
}

// Health is the answer of a server that works.
type Health struct {
	Status  string `json:"status"` // ok
	Version string `json:"version,omitempty"`
}

// NewSecret is the body that makes a secret.
type NewSecret struct {
	Name     string            `json:"name"` // lower-cased
	Value    string            `json:"value"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// SecretUpdate gives a secret a new value, and new metadata where there is some.
type SecretUpdate struct {
	Value    string            `json:"value"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Secret is what may be told of a secret: everything but its value.
type Secret struct {
	SecretID       string            `json:"secretID"`
	Name           string            `json:"name"`
	CurrentVersion int64             `json:"currentVersion"`
	Metadata       map[string]string `json:"metadata"`
	CreatedAt      time.Time         `json:"createdAt"`
	UpdatedAt      time.Time         `json:"updatedAt"`
}

// NewVolume is the body that makes a volume.
type NewVolume struct {
	Name string `json:"name"`
}

// Volume is a volume in a listing.
type Volume struct {
	VolumeID string `json:"volumeID"`
	Name     string `json:"name"`
}

// VolumeAndToken is a volume with the token that its content is reached with, at api.{domain} where there is a domain.
type VolumeAndToken struct {
	VolumeID string `json:"volumeID"`
	Name     string `json:"name"`
	Token    string `json:"token"`
	Domain   string `json:"domain,omitempty"`
}

// VolumeEntry is a file or folder of a volume.
type VolumeEntry struct {
	Name   string    `json:"name"`
	Type   string    `json:"type"` // file, directory, symlink or unknown
	Path   string    `json:"path"`
	Size   int64     `json:"size"`
	Mode   uint32    `json:"mode"` // permissions
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Atime  time.Time `json:"atime"`
	Mtime  time.Time `json:"mtime"`
	Ctime  time.Time `json:"ctime"`
	Target string    `json:"target,omitempty"` // of a symbolic link
}

// VolumeEntryChange is the body that changes an entry; what is absent stays.
type VolumeEntryChange struct {
	UID  *int64 `json:"uid,omitempty"`
	GID  *int64 `json:"gid,omitempty"`
	Mode *int64 `json:"mode,omitempty"`
}
