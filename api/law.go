package api

import "time"

// AuditKey is a key that signs the audit log.
type AuditKey struct {
	KeyID     string `json:"keyID"`
	PublicKey string `json:"publicKey"` // Ed25519, base64
	Own       bool   `json:"own"`       // it is that of the replica that answers
}

// Quota bounds what all sandboxes of a tenant take at a time. 0 sets no bound.
type Quota struct {
	Sandboxes        int64 `json:"sandboxes,omitempty"`
	VCPU             int64 `json:"vcpu,omitempty"`
	MemoryMB         int64 `json:"memoryMB,omitempty"`
	DiskMB           int64 `json:"diskMB,omitempty"`
	SnapshotMB       int64 `json:"snapshotMB,omitempty"`
	CreatesPerMinute int64 `json:"createsPerMinute,omitempty"`
	Queue            int64 `json:"queue,omitempty"`
}

// Usage is what a tenant's sandboxes take now, field by field what its quota bounds.
type Usage struct {
	Sandboxes        int64 `json:"sandboxes"`
	VCPU             int64 `json:"vcpu"`
	MemoryMB         int64 `json:"memoryMB"`
	DiskMB           int64 `json:"diskMB"`
	SnapshotMB       int64 `json:"snapshotMB"`
	CreatesPerMinute int64 `json:"createsPerMinute"`
	Queue            int64 `json:"queue"`
}

// Tenant is a party that owns sandboxes.
type Tenant struct {
	Name      string            `json:"name"`
	Title     string            `json:"title,omitempty"`
	Labels    map[string]string `json:"labels"`
	Quota     Quota             `json:"quota"`
	Usage     *Usage            `json:"usage,omitempty"` // only where one tenant is asked for
	Disabled  bool              `json:"disabled"`
	CreatedAt *time.Time        `json:"createdAt,omitempty"`
}

// TenantChange changes what it names.
type TenantChange struct {
	Title    *string           `json:"title,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Quota    *Quota            `json:"quota,omitempty"`
	Disabled *bool             `json:"disabled,omitempty"`
}

// NewTenant enters a tenant.
type NewTenant struct {
	Name string `json:"name"`
	TenantChange
}

// Key is an API key. Its secret is told once, by the call that made it.
type Key struct {
	KeyID     string     `json:"keyID"`
	Key       string     `json:"key,omitempty"`
	Tenant    string     `json:"tenant"`
	Name      string     `json:"name,omitempty"`
	Role      string     `json:"role"`
	Exec      bool       `json:"exec"`
	Rate      float64    `json:"rate,omitempty"`
	Burst     int        `json:"burst,omitempty"`
	Replaces  string     `json:"replaces,omitempty"`
	CreatedAt time.Time  `json:"createdAt"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
	RevokedAt *time.Time `json:"revokedAt,omitempty"`
	LastUsed  *time.Time `json:"lastUsed,omitempty"`
}

// NewKey makes a key.
type NewKey struct {
	Tenant    string     `json:"tenant,omitempty"` // that of the caller's key when empty
	Name      string     `json:"name,omitempty"`
	Role      string     `json:"role,omitempty"`  // developer when empty
	Exec      *bool      `json:"exec,omitempty"`  // may run processes and touch files; true when left out
	Rate      float64    `json:"rate,omitempty"`  // requests per second; 0 is what the server allows every key
	Burst     int        `json:"burst,omitempty"` // requests at once; 0 goes with Rate
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// KeyRotation says how long the old key works beside the new one.
type KeyRotation struct {
	GraceSeconds int64 `json:"graceSeconds,omitempty"`
}

// Policy is one version of a policy document.
type Policy struct {
	Name      string    `json:"name"`
	Version   int64     `json:"version"`
	Author    string    `json:"author"` // id of the key that wrote it
	CreatedAt time.Time `json:"createdAt"`
	Removed   bool      `json:"removed,omitempty"`
	Body      string    `json:"body,omitempty"`
}

// PolicyChange applies a document.
type PolicyChange struct {
	Body   string `json:"body"`             // YAML or JSON
	Expect int64  `json:"expect,omitempty"` // version that is replaced; 0 for a new policy
	DryRun bool   `json:"dryRun,omitempty"` // check it and run its tests, no more
}

// PolicyApplied is a document that was applied, and how its tests went.
type PolicyApplied struct {
	Policy Policy `json:"policy"`
	Tests  []any  `json:"tests"`
}

// PolicyRollback names the version to go back to.
type PolicyRollback struct {
	Version int64 `json:"version"`
}

// Reason is why a verdict is what it is.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Judge   string `json:"judge,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Policy  string `json:"policyVersion,omitempty"`
}

// PolicyRuling is what the policies in force say to a request.
type PolicyRuling struct {
	Verdict  string   `json:"verdict"`
	Reasons  []Reason `json:"reasons"`
	Revision string   `json:"revision"`
	Policies int      `json:"policies"` // how many were asked
	// Demand is what they require of whatever runs it; nil when they require nothing.
	Demand *PolicyDemand `json:"demand,omitempty"`
}

// PolicyDemand is what policies require of what runs a sandbox.
type PolicyDemand struct {
	Tier    string   `json:"tier,omitempty"`
	Runtime string   `json:"runtime,omitempty"`
	Reasons []Reason `json:"reasons"`
}
