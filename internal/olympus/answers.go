package olympus

import (
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// The two states that SDKs know.
const (
	stateRunning = "running"
	statePaused  = "paused"
)

// runningPhases are what SDKs are told is running: it holds a machine, and goes on.
var runningPhases = []tartarus.Phase{tartarus.Starting, tartarus.Running, tartarus.Pausing, tartarus.Snapshotting, tartarus.Quarantined}

// stateOf is the phase in the words of the SDKs; one that they have no word for goes by its own name.
func stateOf(p tartarus.Phase) string {
	switch {
	case p == tartarus.Paused:
		return statePaused
	case slices.Contains(runningPhases, p):
		return stateRunning
	}
	return string(p)
}

// domain is the wildcard domain to tell clients, or null.
func (s *Server) domain() *string {
	if s.cfg.Domain == "" {
		return nil
	}
	return &s.cfg.Domain
}

// answerSandbox says how to reach a sandbox. Tokens are for keys that may exec.
func (s *Server) answerSandbox(sb tartarus.Sandbox, who caller) api.Sandbox {
	out := api.Sandbox{
		SandboxID: sb.ID, TemplateID: sb.TemplateID, ClientID: clientID, EnvdVersion: tartarus.AgentVersion, Alias: sb.Template, Domain: s.domain(),
		Runtime: runtimeOf(sb), Tier: string(sb.Tier), Node: sb.Node,
	}
	if who.key.Exec {
		out.EnvdAccessToken, out.TrafficAccessToken = sb.Secrets.AgentToken, sb.Secrets.TrafficToken
	}
	return out
}

func runtimeOf(sb tartarus.Sandbox) string {
	if sb.Driver != "" {
		return sb.Driver
	}
	return sb.Runtime
}

// answerListed is a sandbox's line in a listing. Times that have not come yet are those that they would be at the earliest.
func answerListed(sb tartarus.Sandbox) api.ListedSandbox {
	out := api.ListedSandbox{
		SandboxID: sb.ID, TemplateID: sb.TemplateID, ClientID: clientID, Alias: sb.Template,
		StartedAt: sb.StartedAt, EndAt: sb.Deadline, State: stateOf(sb.Phase), EnvdVersion: tartarus.AgentVersion,
		CPUCount: sb.Resources.VCPU, MemoryMB: sb.Resources.MemoryMB, DiskSizeMB: sb.Resources.DiskMB,
		Metadata: sb.Metadata, VolumeMounts: []api.VolumeMount{}, Heat: sb.Heat, Confined: sb.Confined,
		Runtime: runtimeOf(sb), Tier: string(sb.Tier), Node: sb.Node, Phase: string(sb.Phase), Reason: string(sb.Reason), Message: sb.Message,
	}
	if e := sb.Ending; e != nil {
		out.Termination = &api.Termination{
			Reason: string(e.Reason), Message: e.Message, Rung: e.Rung, Since: e.Since.UTC(), Until: e.Until.UTC(), Killed: e.Killed,
			Snapshot: e.Snapshot, Notes: e.Notes,
		}
	}
	for _, v := range sb.Volumes {
		out.VolumeMounts = append(out.VolumeMounts, api.VolumeMount{Name: v.Name, Path: v.Path})
	}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	if sb.Phase == tartarus.Paused {
		out.PauseMode, out.AgentLost = "full", sb.AgentLost
		if sb.DiskOnly {
			out.PauseMode = "filesystem"
		}
	}
	if out.StartedAt.IsZero() {
		out.StartedAt = sb.CreatedAt
	}
	switch {
	case !sb.EndedAt.IsZero():
		out.EndAt = sb.EndedAt
	case out.EndAt.IsZero():
		out.EndAt = out.StartedAt.Add(sb.Timeout)
	}
	out.StartedAt, out.EndAt = out.StartedAt.UTC(), out.EndAt.UTC()
	return out
}

func (s *Server) answerDetail(sb tartarus.Sandbox, who caller) api.SandboxDetail {
	out := api.SandboxDetail{
		ListedSandbox:       answerListed(sb),
		Domain:              s.domain(),
		AllowInternetAccess: sb.Network.Internet && !slices.Contains(sb.Network.Deny, everything),
		Network: &api.NetworkConfig{
			AllowOut: sb.Network.Allow, DenyOut: sb.Network.Deny, AllowPublicTraffic: &sb.Network.PublicTraffic,
			MaskRequestHost: sb.Network.MaskRequestHost, HTTPSPorts: sb.Network.HTTPSPorts,
		},
		Lifecycle: &api.Lifecycle{OnTimeout: "kill", AutoResume: sb.Lifecycle.AutoResume, Hibernate: !sb.Lifecycle.Awake},
	}
	if g := sb.Lifecycle.Grace; g != nil {
		seconds := int64(*g / time.Second)
		out.Lifecycle.Grace = &seconds
	}
	answerServices(out.Network, sb.Network, who.key.Exec)
	if sb.Lifecycle.PauseOnTimeout {
		out.Lifecycle.OnTimeout = "pause"
	}
	if who.key.Exec {
		out.EnvdAccessToken, out.TrafficAccessToken = sb.Secrets.AgentToken, sb.Secrets.TrafficToken
	}
	return out
}

func answerMetric(m Sample) api.Metric {
	return api.Metric{
		Timestamp: m.Time.UTC(), TimestampUnix: m.Time.Unix(), CPUCount: m.CPUCount, CPUUsedPct: m.CPUPercent,
		MemUsed: m.MemUsed, MemTotal: m.MemTotal, MemCache: m.MemCache, DiskUsed: m.DiskUsed, DiskTotal: m.DiskTotal,
	}
}

func answerLog(e LogEntry) api.LogEntry {
	out := api.LogEntry{Timestamp: e.Time.UTC(), Level: e.Level, Message: e.Message, Fields: e.Fields}
	if out.Fields == nil {
		out.Fields = map[string]string{}
	}
	return out
}

func answerTemplate(t Template) api.Template {
	names := slices.Clone(t.Names)
	if names == nil {
		names = []string{}
	}
	return api.Template{
		TemplateID: t.ID, BuildID: t.BuildID, CPUCount: t.VCPU, MemoryMB: t.MemoryMB, DiskSizeMB: t.DiskMB, Public: t.Public,
		Aliases: names, Names: names, CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(), BuildCount: 1,
		EnvdVersion: tartarus.AgentVersion, BuildStatus: "ready",
	}
}

func nodeStatus(live, cordoned bool) string {
	switch {
	case !live:
		return "lost"
	case cordoned:
		return "cordoned"
	}
	return "ready"
}

// unixMilli reads a number of milliseconds since 1970 as a time, within the years that JSON can write.
func unixMilli(ms int64) (time.Time, bool) {
	t := time.UnixMilli(ms).UTC()
	return t, t.Year() >= 0 && t.Year() <= 9999
}
