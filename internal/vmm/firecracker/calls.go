package firecracker

import (
	"context"
	"net/http"
)

// The types and calls here are those of the monitor's API (its src/firecracker/swagger/firecracker.yaml) that this driver uses,
// under the same names. A nil pointer or an empty string is left out of the request.

// MachineConfig is PUT /machine-config.
type MachineConfig struct {
	VCPUs      int    `json:"vcpu_count"`
	MemoryMiB  int64  `json:"mem_size_mib"`
	SMT        bool   `json:"smt"`
	Template   string `json:"cpu_template,omitempty"`
	TrackDirty bool   `json:"track_dirty_pages"`
	HugePages  string `json:"huge_pages,omitempty"`
}

// BootSource is PUT /boot-source.
type BootSource struct {
	Kernel  string `json:"kernel_image_path"`
	Initrd  string `json:"initrd_path,omitempty"`
	Command string `json:"boot_args,omitempty"`
}

// TokenBucket lets Size pass at once and Size again in each RefillMS.
type TokenBucket struct {
	Size     int64 `json:"size"`
	Burst    int64 `json:"one_time_burst,omitempty"`
	RefillMS int64 `json:"refill_time"`
}

// RateLimiter bounds a device; nil means unbounded.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"` // bytes
	Ops       *TokenBucket `json:"ops,omitempty"`       // operations
}

// I/O engines of a drive.
const (
	EngineSync  = "Sync"
	EngineAsync = "Async" // io_uring
)

// Drive is PUT /drives/{ID}.
type Drive struct {
	ID       string       `json:"drive_id"`
	Path     string       `json:"path_on_host"`
	Root     bool         `json:"is_root_device"`
	ReadOnly bool         `json:"is_read_only"`
	Engine   string       `json:"io_engine,omitempty"`
	Cache    string       `json:"cache_type,omitempty"`
	Limit    *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface is PUT /network-interfaces/{ID}.
type NetworkInterface struct {
	ID     string       `json:"iface_id"`
	Device string       `json:"host_dev_name"`
	MAC    string       `json:"guest_mac,omitempty"`
	RX     *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX     *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Vsock is PUT /vsock. Its socket must be gone before a snapshot of the machine is loaded.
type Vsock struct {
	CID  uint32 `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// Balloon is PUT /balloon.
type Balloon struct {
	MiB          int64 `json:"amount_mib"`
	DeflateOnOOM bool  `json:"deflate_on_oom"`
	StatsSeconds int   `json:"stats_polling_interval_s"`
}

// BalloonStats is GET /balloon/statistics; the guest's driver fills it in.
type BalloonStats struct {
	TargetMiB       int64 `json:"target_mib"`
	ActualMiB       int64 `json:"actual_mib"`
	FreeMemory      int64 `json:"free_memory"`
	TotalMemory     int64 `json:"total_memory"`
	AvailableMemory int64 `json:"available_memory"`
	DiskCaches      int64 `json:"disk_caches"`
	MajorFaults     int64 `json:"major_faults"`
}

// Instance is GET /.
type Instance struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Version string `json:"vmm_version"`
}

// States of an Instance.
const (
	stateRunning = "Running"
	statePaused  = "Paused"
)

// Kinds of a snapshot.
const (
	SnapshotFull = "Full"
	SnapshotDiff = "Diff" // only the pages that changed since the last one
)

// SnapshotCreate is PUT /snapshot/create.
type SnapshotCreate struct {
	Kind   string `json:"snapshot_type"`
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

// Backends of a loaded machine's memory.
const (
	BackendFile = "File" // Path is the memory file, mapped privately
	BackendUffd = "Uffd" // Path is the socket of a page-fault handler
)

// Backend says where the memory of a loaded machine comes from.
type Backend struct {
	Kind string `json:"backend_type"`
	Path string `json:"backend_path"`
}

// NetworkOverride replaces the TAP device of an interface in a snapshot.
type NetworkOverride struct {
	ID     string `json:"iface_id"`
	Device string `json:"host_dev_name"`
}

// SnapshotLoad is PUT /snapshot/load.
type SnapshotLoad struct {
	State      string
	Memory     Backend
	TrackDirty bool
	Resume     bool
	Networks   []NetworkOverride
}

// Describe asks what the monitor does; it also answers whether it does anything.
func (c *Client) Describe(ctx context.Context) (i Instance, err error) {
	return i, c.call(ctx, http.MethodGet, "/", nil, &i)
}

// SetMachine sets processors and memory.
func (c *Client) SetMachine(ctx context.Context, m MachineConfig) error {
	return c.call(ctx, http.MethodPut, "/machine-config", m, nil)
}

// SetBoot sets kernel and initial ram disk.
func (c *Client) SetBoot(ctx context.Context, b BootSource) error {
	return c.call(ctx, http.MethodPut, "/boot-source", b, nil)
}

// AddDrive adds a drive.
func (c *Client) AddDrive(ctx context.Context, d Drive) error {
	return c.call(ctx, http.MethodPut, "/drives/"+d.ID, d, nil)
}

// LimitDrive changes a drive's limits while the machine runs.
func (c *Client) LimitDrive(ctx context.Context, id string, l RateLimiter) error {
	return c.call(ctx, http.MethodPatch, "/drives/"+id, map[string]any{"drive_id": id, "rate_limiter": l}, nil)
}

// AddNetwork adds a network interface.
func (c *Client) AddNetwork(ctx context.Context, n NetworkInterface) error {
	return c.call(ctx, http.MethodPut, "/network-interfaces/"+n.ID, n, nil)
}

// LimitNetwork changes an interface's limits while the machine runs.
func (c *Client) LimitNetwork(ctx context.Context, id string, rx, tx *RateLimiter) error {
	n := map[string]any{"iface_id": id}
	if rx != nil {
		n["rx_rate_limiter"] = rx
	}
	if tx != nil {
		n["tx_rate_limiter"] = tx
	}
	return c.call(ctx, http.MethodPatch, "/network-interfaces/"+id, n, nil)
}

// SetVsock adds the vsock device.
func (c *Client) SetVsock(ctx context.Context, v Vsock) error {
	return c.call(ctx, http.MethodPut, "/vsock", v, nil)
}

// SetEntropy adds the entropy device.
func (c *Client) SetEntropy(ctx context.Context, l *RateLimiter) error {
	e := map[string]any{}
	if l != nil {
		e["rate_limiter"] = l
	}
	return c.call(ctx, http.MethodPut, "/entropy", e, nil)
}

// SetBalloon adds the balloon device.
func (c *Client) SetBalloon(ctx context.Context, b Balloon) error {
	return c.call(ctx, http.MethodPut, "/balloon", b, nil)
}

// Inflate asks the guest for memory back.
func (c *Client) Inflate(ctx context.Context, mib int64) error {
	return c.call(ctx, http.MethodPatch, "/balloon", map[string]any{"amount_mib": mib}, nil)
}

// BalloonStats asks what the guest's balloon driver says.
func (c *Client) BalloonStats(ctx context.Context) (s BalloonStats, err error) {
	return s, c.call(ctx, http.MethodGet, "/balloon/statistics", nil, &s)
}

// Start boots the machine.
func (c *Client) Start(ctx context.Context) error { return c.action(ctx, "InstanceStart") }

// FlushMetrics has the monitor write its counters now.
func (c *Client) FlushMetrics(ctx context.Context) error { return c.action(ctx, "FlushMetrics") }

func (c *Client) action(ctx context.Context, what string) error {
	return c.call(ctx, http.MethodPut, "/actions", map[string]any{"action_type": what}, nil)
}

// Pause stops the processors.
func (c *Client) Pause(ctx context.Context) error { return c.state(ctx, "Paused") }

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error { return c.state(ctx, "Resumed") }

func (c *Client) state(ctx context.Context, s string) error {
	return c.call(ctx, http.MethodPatch, "/vm", map[string]any{"state": s}, nil)
}

// CreateSnapshot writes a snapshot of the paused machine.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.call(ctx, http.MethodPut, "/snapshot/create", s, nil)
}

// LoadSnapshot makes the machine of a snapshot.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	body := map[string]any{"snapshot_path": s.State, "mem_backend": s.Memory, "resume_vm": s.Resume}
	if s.TrackDirty {
		body[c.version.trackDirtyField()] = true
	}
	if len(s.Networks) > 0 {
		body["network_overrides"] = s.Networks
	}
	return c.call(ctx, http.MethodPut, "/snapshot/load", body, nil)
}
