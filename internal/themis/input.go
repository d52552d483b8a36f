package themis

import (
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Input is everything that expressions may ask of a request. The tags are the names in expressions, behind the name of the part: request.vcpu,
// tenant.labels, template.pinned, key.role, history.creates.
type Input struct {
	Now      time.Time     `yaml:"now,omitempty" json:"now,omitzero"` // now, in UTC
	Request  RequestInput  `yaml:"request,omitempty" json:"request"`
	Tenant   TenantInput   `yaml:"tenant,omitempty" json:"tenant"`
	Template TemplateInput `yaml:"template,omitempty" json:"template"`
	Key      KeyInput      `yaml:"key,omitempty" json:"key"`
	History  HistoryInput  `yaml:"history,omitempty" json:"history"`

	// FindHistory gives History when an expression asks for it; nil takes it as it is. It is called once at most.
	FindHistory func() (HistoryInput, error) `yaml:"-" json:"-"`
}

// RequestInput is what is asked for.
type RequestInput struct {
	Action        string            `yaml:"action,omitempty" json:"action"` // create, network or resume
	VCPU          int64             `yaml:"vcpu,omitempty" json:"vcpu"`
	MemoryMB      int64             `yaml:"memoryMB,omitempty" json:"memoryMB"`
	DiskMB        int64             `yaml:"diskMB,omitempty" json:"diskMB"`
	Timeout       time.Duration     `yaml:"timeout,omitempty" json:"timeout"`
	Runtime       string            `yaml:"runtime,omitempty" json:"runtime"` // empty leaves it to the node
	Tier          string            `yaml:"tier,omitempty" json:"tier"`       // weakest isolation that is asked for; empty is any
	Metadata      map[string]string `yaml:"metadata,omitempty" json:"metadata"`
	EnvNames      []string          `yaml:"envNames,omitempty" json:"envNames"` // never their values
	Internet      bool              `yaml:"internet,omitempty" json:"internet"`
	Allow         []string          `yaml:"allow,omitempty" json:"allow"`
	Deny          []string          `yaml:"deny,omitempty" json:"deny"`
	AllEgress     bool              `yaml:"allEgress,omitempty" json:"allEgress"`         // the Internet without any restriction
	HeaderDomains []string          `yaml:"headerDomains,omitempty" json:"headerDomains"` // in requests to which headers are put
	Secrets       []string          `yaml:"secrets,omitempty" json:"secrets"`             // names of those that the headers hold
	Tokens        []string          `yaml:"tokens,omitempty" json:"tokens"`               // audiences of the identity tokens
	EgressProxy   string            `yaml:"egressProxy,omitempty" json:"egressProxy"`     // host:port; empty is none
	NameServers   []string          `yaml:"nameServers,omitempty" json:"nameServers"`
	Volumes       []string          `yaml:"volumes,omitempty" json:"volumes"` // by the names they were asked for
	PublicTraffic bool              `yaml:"publicTraffic,omitempty" json:"publicTraffic"`
	AutoPause     bool              `yaml:"autoPause,omitempty" json:"autoPause"`
}

// TenantInput is who asks.
type TenantInput struct {
	Name   string            `yaml:"name,omitempty" json:"name"`
	Labels map[string]string `yaml:"labels,omitempty" json:"labels"`
}

// TemplateInput is what it is made from.
type TemplateInput struct {
	ID       string   `yaml:"id,omitempty" json:"id"`
	Names    []string `yaml:"names,omitempty" json:"names"`
	Digest   string   `yaml:"digest,omitempty" json:"digest"`     // of the file system
	Image    string   `yaml:"image,omitempty" json:"image"`       // container image that it was built from; empty for others
	Registry string   `yaml:"registry,omitempty" json:"registry"` // where that came from, such as docker.io
	Pinned   bool     `yaml:"pinned,omitempty" json:"pinned"`     // it was named by digest
	Signed   bool     `yaml:"signed,omitempty" json:"signed"`     // it was signed by a key of the server's configuration
	Signers  []string `yaml:"signers,omitempty" json:"signers"`   // the names of these keys there
}

// KeyInput is the API key.
type KeyInput struct {
	ID   string `yaml:"id,omitempty" json:"id"`
	Name string `yaml:"name,omitempty" json:"name"`
	Role string `yaml:"role,omitempty" json:"role"`
}

// HistoryInput is what the tenant did before, while the registry remembers it.
type HistoryInput struct {
	Creates int64 `yaml:"creates,omitempty" json:"creates"` // sandboxes, up to 1000
	Running int64 `yaml:"running,omitempty" json:"running"` // of these, such as have not ended
	Failed  int64 `yaml:"failed,omitempty" json:"failed"`   // of these, such as ended for another cause than time or somebody's wish
	VCPU    int64 `yaml:"vcpu,omitempty" json:"vcpu"`       // processors of those that run

	Strikes         int64 `yaml:"strikes,omitempty" json:"strikes"`                 // of the tenant's sandboxes, such as still count
	TemplateStrikes int64 `yaml:"templateStrikes,omitempty" json:"templateStrikes"` // of these, by the template that is asked for
}

// variable is a name in expressions: its type, and where its value is.
type variable struct {
	kind *cel.Type
	get  func(*Input) any
}

var (
	stringMap  = cel.MapType(cel.StringType, cel.StringType)
	stringList = cel.ListType(cel.StringType)
)

// variables are declared by their whole names, so that a slip of the pen is found when a policy is compiled, and a value is found without
// looking through maps when it runs.
var variables = map[string]variable{
	"now":                     {cel.TimestampType, func(in *Input) any { return in.Now }},
	"request.action":          {cel.StringType, func(in *Input) any { return in.Request.Action }},
	"request.vcpu":            {cel.IntType, func(in *Input) any { return in.Request.VCPU }},
	"request.memoryMB":        {cel.IntType, func(in *Input) any { return in.Request.MemoryMB }},
	"request.diskMB":          {cel.IntType, func(in *Input) any { return in.Request.DiskMB }},
	"request.timeout":         {cel.DurationType, func(in *Input) any { return in.Request.Timeout }},
	"request.runtime":         {cel.StringType, func(in *Input) any { return in.Request.Runtime }},
	"request.tier":            {cel.StringType, func(in *Input) any { return in.Request.Tier }},
	"request.metadata":        {stringMap, func(in *Input) any { return in.Request.Metadata }},
	"request.envNames":        {stringList, func(in *Input) any { return in.Request.EnvNames }},
	"request.internet":        {cel.BoolType, func(in *Input) any { return in.Request.Internet }},
	"request.allow":           {stringList, func(in *Input) any { return in.Request.Allow }},
	"request.deny":            {stringList, func(in *Input) any { return in.Request.Deny }},
	"request.allEgress":       {cel.BoolType, func(in *Input) any { return in.Request.AllEgress }},
	"request.headerDomains":   {stringList, func(in *Input) any { return in.Request.HeaderDomains }},
	"request.secrets":         {stringList, func(in *Input) any { return in.Request.Secrets }},
	"request.tokens":          {stringList, func(in *Input) any { return in.Request.Tokens }},
	"request.egressProxy":     {cel.StringType, func(in *Input) any { return in.Request.EgressProxy }},
	"request.nameServers":     {stringList, func(in *Input) any { return in.Request.NameServers }},
	"request.volumes":         {stringList, func(in *Input) any { return in.Request.Volumes }},
	"request.publicTraffic":   {cel.BoolType, func(in *Input) any { return in.Request.PublicTraffic }},
	"request.autoPause":       {cel.BoolType, func(in *Input) any { return in.Request.AutoPause }},
	"tenant.name":             {cel.StringType, func(in *Input) any { return in.Tenant.Name }},
	"tenant.labels":           {stringMap, func(in *Input) any { return in.Tenant.Labels }},
	"template.id":             {cel.StringType, func(in *Input) any { return in.Template.ID }},
	"template.names":          {stringList, func(in *Input) any { return in.Template.Names }},
	"template.digest":         {cel.StringType, func(in *Input) any { return in.Template.Digest }},
	"template.image":          {cel.StringType, func(in *Input) any { return in.Template.Image }},
	"template.registry":       {cel.StringType, func(in *Input) any { return in.Template.Registry }},
	"template.pinned":         {cel.BoolType, func(in *Input) any { return in.Template.Pinned }},
	"template.signed":         {cel.BoolType, func(in *Input) any { return in.Template.Signed }},
	"template.signers":        {stringList, func(in *Input) any { return in.Template.Signers }},
	"key.id":                  {cel.StringType, func(in *Input) any { return in.Key.ID }},
	"key.name":                {cel.StringType, func(in *Input) any { return in.Key.Name }},
	"key.role":                {cel.StringType, func(in *Input) any { return in.Key.Role }},
	"history.creates":         {cel.IntType, func(in *Input) any { return in.History.Creates }},
	"history.running":         {cel.IntType, func(in *Input) any { return in.History.Running }},
	"history.failed":          {cel.IntType, func(in *Input) any { return in.History.Failed }},
	"history.vcpu":            {cel.IntType, func(in *Input) any { return in.History.VCPU }},
	"history.strikes":         {cel.IntType, func(in *Input) any { return in.History.Strikes }},
	"history.templateStrikes": {cel.IntType, func(in *Input) any { return in.History.TemplateStrikes }},
}

// environment is the one that all expressions are compiled in.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	options := make([]cel.EnvOption, 0, len(variables)+1)
	options = append(options, cel.OptionalTypes()) // labels[?"name"].orValue("")
	for name, v := range variables {
		options = append(options, cel.Variable(name, v.kind))
	}
	return cel.NewEnv(options...)
})

// activation makes an Input what CEL looks variables up in. A value is made CEL's own once for all expressions of a request.
type activation struct {
	*Input
	known map[string]ref.Val
}

func newActivation(in *Input) *activation {
	return &activation{in, make(map[string]ref.Val, len(variables))}
}

func (a *activation) ResolveName(name string) (any, bool) {
	if v, ok := a.known[name]; ok {
		return v, true
	}
	v, ok := variables[name]
	if !ok {
		return nil, false
	}
	value := types.DefaultTypeAdapter.NativeToValue(v.get(a.Input))
	a.known[name] = value
	return value, true
}

// Parent implements CEL's activation: there is nothing around it.
func (*activation) Parent() cel.Activation { return nil }
