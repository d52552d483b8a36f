package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/tartarus-sandbox/tartarus/api"
)

// Audit returns records of the audit log: the newest ones, or, with nextToken in q, those that came after. next is the token for that.
// The filters are those of GET /audit. It needs an operator's key.
func (c *Client) Audit(ctx context.Context, q url.Values) (records []json.RawMessage, next string, err error) {
	h, err := c.call(ctx, http.MethodGet, "/audit", q, nil, nil, &records)
	return records, h.Get(api.HeaderNextToken), err
}

// AuditExport writes all matching records to w, in the format that q names: jsonl, cef or ocsf.
func (c *Client) AuditExport(ctx context.Context, q url.Values, w io.Writer) error {
	u := *c.base
	u.Path += "/audit/export"
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("User-Agent", c.userAgent)
	if c.key != "" {
		req.Header.Set(api.HeaderKey, c.key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		raw, _ := io.ReadAll(io.LimitReader(res.Body, maxBody))
		return answerError(res.StatusCode, res.Header, raw)
	}
	if _, err := io.Copy(w, res.Body); err != nil {
		return fmt.Errorf("export is not whole: %w", err)
	}
	return nil
}

// AuditVerify has the server hold its audit log against hashes and signatures. root is the id of the key that signed the first checkpoint,
// where it is known; the report is that of GET /audit/verification.
func (c *Client) AuditVerify(ctx context.Context, root string) (report json.RawMessage, err error) {
	q := url.Values{}
	if root != "" {
		q.Set("root", root)
	}
	err = c.do(ctx, http.MethodGet, "/audit/verification", q, nil, nil, &report)
	return report, err
}

// AuditKeys lists the keys that sign the audit log.
func (c *Client) AuditKeys(ctx context.Context) (keys []api.AuditKey, err error) {
	err = c.do(ctx, http.MethodGet, "/audit/keys", nil, nil, nil, &keys)
	return keys, err
}

// RotateAuditKey gives the server a new signing key.
func (c *Client) RotateAuditKey(ctx context.Context) (key api.AuditKey, err error) {
	err = c.do(ctx, http.MethodPost, "/audit/keys", nil, nil, nil, &key)
	return key, err
}

// TrustAuditKey makes the key of another replica count, or, with trust false, count no more.
func (c *Client) TrustAuditKey(ctx context.Context, id string, trust bool) error {
	method := http.MethodPut
	if !trust {
		method = http.MethodDelete
	}
	return c.do(ctx, method, "/audit/keys/"+url.PathEscape(id), nil, nil, nil, nil)
}

// Tenants lists the tenants; it needs an operator's key.
func (c *Client) Tenants(ctx context.Context) (out []api.Tenant, err error) {
	err = c.do(ctx, http.MethodGet, "/tenants", nil, nil, nil, &out)
	return out, err
}

// Tenant describes a tenant.
func (c *Client) Tenant(ctx context.Context, name string) (out *api.Tenant, err error) {
	err = c.do(ctx, http.MethodGet, "/tenants/"+url.PathEscape(name), nil, nil, nil, &out)
	return out, err
}

// CreateTenant enters a tenant; it needs an admin's key.
func (c *Client) CreateTenant(ctx context.Context, in api.NewTenant) (out *api.Tenant, err error) {
	err = c.do(ctx, http.MethodPost, "/tenants", nil, nil, in, &out)
	return out, err
}

// ChangeTenant changes what in names.
func (c *Client) ChangeTenant(ctx context.Context, name string, in api.TenantChange) (out *api.Tenant, err error) {
	err = c.do(ctx, http.MethodPatch, "/tenants/"+url.PathEscape(name), nil, nil, in, &out)
	return out, err
}

// RemoveTenant forgets a tenant without keys and sandboxes.
func (c *Client) RemoveTenant(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/tenants/"+url.PathEscape(name), nil, nil, nil, nil)
}

// Keys lists API keys, of one tenant or, with an empty name, of all; it needs an admin's key.
func (c *Client) Keys(ctx context.Context, tenant string) (out []api.Key, err error) {
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", tenant)
	}
	err = c.do(ctx, http.MethodGet, "/keys", q, nil, nil, &out)
	return out, err
}

// CreateKey makes an API key; its secret is in the answer.
func (c *Client) CreateKey(ctx context.Context, in api.NewKey) (out *api.Key, err error) {
	err = c.do(ctx, http.MethodPost, "/keys", nil, nil, in, &out)
	return out, err
}

// RotateKey makes a key that takes the place of another one, which works for the grace still.
func (c *Client) RotateKey(ctx context.Context, id string, in api.KeyRotation) (out *api.Key, err error) {
	err = c.do(ctx, http.MethodPost, "/keys/"+url.PathEscape(id)+"/rotations", nil, nil, in, &out)
	return out, err
}

// RevokeKey ends a key.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/keys/"+url.PathEscape(id), nil, nil, nil, nil)
}

// Policies lists the policies in their current versions; it needs an operator's key, like all about policies.
func (c *Client) Policies(ctx context.Context) (out []api.Policy, err error) {
	err = c.do(ctx, http.MethodGet, "/policies", nil, nil, nil, &out)
	return out, err
}

// Policy returns a version of a policy, or the current one for version 0.
func (c *Client) Policy(ctx context.Context, name string, version int64) (out *api.Policy, err error) {
	q := url.Values{}
	if version > 0 {
		q.Set("version", fmt.Sprint(version))
	}
	err = c.do(ctx, http.MethodGet, "/policies/"+url.PathEscape(name), q, nil, nil, &out)
	return out, err
}

// PolicyHistory returns all versions of a policy, newest first.
func (c *Client) PolicyHistory(ctx context.Context, name string) (out []api.Policy, err error) {
	err = c.do(ctx, http.MethodGet, "/policies/"+url.PathEscape(name)+"/versions", nil, nil, nil, &out)
	return out, err
}

// ApplyPolicy stores a new version.
func (c *Client) ApplyPolicy(ctx context.Context, name string, in api.PolicyChange) (out *api.PolicyApplied, err error) {
	err = c.do(ctx, http.MethodPut, "/policies/"+url.PathEscape(name), nil, nil, in, &out)
	return out, err
}

// RollBackPolicy makes an earlier version the newest one.
func (c *Client) RollBackPolicy(ctx context.Context, name string, version int64) (out *api.Policy, err error) {
	err = c.do(ctx, http.MethodPost, "/policies/"+url.PathEscape(name)+"/rollbacks", nil, nil, api.PolicyRollback{Version: version}, &out)
	return out, err
}

// RemovePolicy takes a policy out of force.
func (c *Client) RemovePolicy(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/policies/"+url.PathEscape(name), nil, nil, nil, nil)
}

// ExplainPolicies says what the policies in force would say to a request; in is what expressions see of it.
func (c *Client) ExplainPolicies(ctx context.Context, in any) (out *api.PolicyRuling, err error) {
	err = c.do(ctx, http.MethodPost, "/policies/explain", nil, nil, in, &out)
	return out, err
}
