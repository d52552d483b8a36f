package olympus

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// Bounds of what a create may carry. They keep a sandbox's record small enough to hold a million.
const (
	maxMetadata      = 64
	maxMetadataKey   = 256
	maxMetadataValue = 4096
	maxEnv           = 1000
	maxEnvName       = 256
	maxEnvValue      = 128<<10 - 256 // the kernel takes 128 KiB for NAME=VALUE (MAX_ARG_STRLEN)
	maxTemplateRef   = 256
	// maxSeconds keeps a number of seconds within a Duration; the limit that counts is Minos'.
	maxSeconds = 1 << 31
)

// createBody is api.NewSandbox with its network left for a strict second look.
type createBody struct {
	api.NewSandbox
	Network json.RawMessage `json:"network"`
}

// newSpec turns the body of a create into a sandbox's specification.
func (s *Server) newSpec(ctx context.Context, raw []byte, who caller, v wireVersion) (tartarus.Spec, tartarus.Tier, error) {
	var in createBody
	if err := decode(raw, &in, false); err != nil {
		return tartarus.Spec{}, "", err
	}
	if err := s.checkCreate(&in); err != nil {
		return tartarus.Spec{}, "", err
	}
	timeout, err := duration(in.Timeout, v.timeout, "timeout")
	if err != nil {
		return tartarus.Spec{}, "", err
	}
	grace, err := ownGrace(in.Grace)
	if err != nil {
		return tartarus.Spec{}, "", err
	}
	network, err := newNetwork(in.Network, in.AllowInternetAccess)
	if err != nil {
		return tartarus.Spec{}, "", err
	}
	template, snap, err := s.origin(ctx, &in, who)
	if err != nil {
		return tartarus.Spec{}, "", err
	}
	spec := tartarus.Spec{
		ID: tartarus.NewID(), Tenant: who.key.Tenant, TemplateID: template.ID, BuildID: template.BuildID, Template: in.TemplateID,
		Metadata: in.Metadata, Env: in.EnvVars, Network: network, Timeout: timeout, Runtime: in.Runtime, RequestID: who.request,
		Lifecycle: tartarus.Lifecycle{
			PauseOnTimeout: isTrue(in.AutoPause), PauseMemory: isTrue(in.AutoPause) && !isFalse(in.AutoPauseMemory),
			AutoResume: in.AutoResume != nil && in.AutoResume.Enabled,
			Grace:      grace, Awake: isFalse(in.Hibernate),
		},
		Resources: tartarus.Resources{
			VCPU: int(pick(in.CPUCount, int64(template.VCPU))), MemoryMB: pick(in.MemoryMB, template.MemoryMB), DiskMB: pick(in.DiskSizeMB, template.DiskMB),
		},
	}
	if spec.Identity, err = s.identityTokens(in.IAM); err != nil {
		return tartarus.Spec{}, "", err
	}
	if err := checkPlaceholders(network, spec.Identity); err != nil {
		return tartarus.Spec{}, "", err
	}
	if spec.Volumes, err = s.volumeMounts(ctx, in.VolumeMounts, who); err != nil {
		return tartarus.Spec{}, "", err
	}
	if len(template.Names) > 0 && (in.TemplateID == "" || in.TemplateID == template.ID) {
		spec.Template = template.Names[0]
	}
	if snap != nil {
		spec.SnapshotID, spec.Runtime = snap.ID, snap.Runtime
	}
	// A key that may not exec must not get a sandbox whose agent asks nobody for a token.
	if v.secure || isTrue(in.Secure) || !who.key.Exec {
		spec.Secrets.AgentToken = newToken()
	}
	if !network.PublicTraffic {
		spec.Secrets.TrafficToken = newToken()
	}
	return spec, tartarus.Tier(in.Tier), nil
}

// ownGrace is the time that a create gives its sandbox to end in; nil leaves it to the template and the server.
func ownGrace(seconds *int64) (*time.Duration, error) {
	if seconds == nil {
		return nil, nil
	}
	d, err := duration(seconds, 0, "terminationGrace")
	if err != nil {
		return nil, err
	}
	if d > maxGrace {
		return nil, tartarus.Errorf(tartarus.Invalid, "terminationGrace must not be over %d s", int64(maxGrace/time.Second))
	}
	return &d, nil
}

// origin finds what a sandbox is made from: a template, or a snapshot, which then stands for its template with what the sandbox had.
func (s *Server) origin(ctx context.Context, in *createBody, who caller) (Template, *tartarus.Snapshot, error) {
	template, err := s.templates.resolve(ctx, who.key.Tenant, in.TemplateID, who.now)
	if !tartarus.Is(err, tartarus.NotFound) {
		return template, nil, err
	}
	snap, err := s.findSnapshot(ctx, who.key.Tenant, in.TemplateID)
	if tartarus.Is(err, tartarus.NotFound) {
		return template, nil, tartarus.Errorf(tartarus.NotFound, "template %q not found", in.TemplateID)
	}
	if err != nil {
		return template, nil, err
	}
	had := snap.Resources
	for name, asked := range map[string]struct {
		value *int64
		had   int64
	}{"cpuCount": {in.CPUCount, int64(had.VCPU)}, "memoryMB": {in.MemoryMB, had.MemoryMB}, "diskSizeMB": {in.DiskSizeMB, had.DiskMB}} {
		if asked.value != nil && *asked.value != asked.had && !snap.Disk {
			return template, nil, tartarus.Errorf(tartarus.Invalid, "%s is %d in this snapshot, whose guest goes on running and cannot be given %d; leave it out", name, asked.had, *asked.value)
		}
	}
	if in.Runtime != "" && in.Runtime != "auto" && in.Runtime != snap.Runtime {
		return template, nil, tartarus.Errorf(tartarus.Invalid, "the snapshot is of the runtime %s and cannot run on %s", snap.Runtime, in.Runtime)
	}
	return Template{ID: snap.TemplateID, BuildID: snap.BuildID, VCPU: had.VCPU, MemoryMB: had.MemoryMB, DiskMB: had.DiskMB}, &snap.Snapshot, nil
}

// checkCreate refuses what no sandbox can be made of, and what this server cannot do, by name: nothing that was asked for is left
// out in silence.
func (s *Server) checkCreate(in *createBody) error {
	switch {
	case len(in.TemplateID) > maxTemplateRef || strings.ContainsFunc(in.TemplateID, notInRef):
		return tartarus.Errorf(tartarus.Invalid, "templateID must be at most %d letters, digits and any of - _ . : /", maxTemplateRef)
	case len(in.Runtime) > 32 || in.Runtime != "" && strings.ContainsFunc(in.Runtime, notInRef):
		return tartarus.Errorf(tartarus.Invalid, "runtime is not the name of one")
	case in.Tier != "" && !tartarus.Tier(in.Tier).AtLeast(tartarus.TierNone):
		return tartarus.Errorf(tartarus.Invalid, "tier %q is none of user-kernel, emulated-vm, hardware-vm", in.Tier)
	case !s.cfg.CanPause && isTrue(in.AutoPause):
		return unsupported("autoPause")
	case !s.cfg.CanPause && in.AutoResume != nil && in.AutoResume.Enabled:
		return unsupported("autoResume")
	}
	for name, n := range map[string]*int64{"cpuCount": in.CPUCount, "memoryMB": in.MemoryMB, "diskSizeMB": in.DiskSizeMB} {
		// Zero would read as "not asked for" further on, and no sandbox has more than a billion of anything.
		if n != nil && (*n < 1 || *n > 1<<30) {
			return tartarus.Errorf(tartarus.Invalid, "%s must be at least 1", name)
		}
	}
	if err := checkMetadata(in.Metadata); err != nil {
		return err
	}
	return checkEnv(in.EnvVars)
}

func unsupported(what string) error {
	return tartarus.Errorf(tartarus.Unsupported, "%s: this server does not support it; leave it out", what)
}

func notInRef(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:/", c)
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxMetadata {
		return tartarus.Errorf(tartarus.Invalid, "metadata may have %d keys, not %d", maxMetadata, len(m))
	}
	for k, v := range m {
		if k == "" || len(k) > maxMetadataKey || len(v) > maxMetadataValue {
			return tartarus.Errorf(tartarus.Invalid, "metadata %.40q: a key has 1 to %d bytes and a value at most %d", k, maxMetadataKey, maxMetadataValue)
		}
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > maxEnv {
		return tartarus.Errorf(tartarus.Invalid, "envVars may have %d variables, not %d", maxEnv, len(env))
	}
	for k, v := range env {
		switch {
		case k == "" || len(k) > maxEnvName || strings.ContainsAny(k, "=\x00") || !utf8.ValidString(k):
			return tartarus.Errorf(tartarus.Invalid, "envVars: %.40q cannot be the name of a variable", k)
		case len(v) > maxEnvValue || strings.ContainsRune(v, 0):
			return tartarus.Errorf(tartarus.Invalid, "envVars: the value of %s is too long or has a NUL", k)
		}
	}
	return nil
}

// duration reads a number of seconds that may be left out.
func duration(seconds *int64, def time.Duration, name string) (time.Duration, error) {
	if seconds == nil {
		return def, nil
	}
	if *seconds < 0 || *seconds > maxSeconds {
		return 0, tartarus.Errorf(tartarus.Invalid, "%s must be a number of seconds from 0", name)
	}
	return time.Duration(*seconds) * time.Second, nil
}

func isTrue(b *bool) bool  { return b != nil && *b }
func isFalse(b *bool) bool { return b != nil && !*b }

// isSet tells a value from an absent one and from null.
func isSet(raw json.RawMessage) bool { return len(raw) > 0 && !bytes.Equal(raw, []byte("null")) }

func pick(asked *int64, def int64) int64 {
	if asked != nil {
		return *asked
	}
	return def
}
