-- What the queue's scripts share. KEYS[1] is the prefix of all its keys, which ends in a hash tag: they are in one slot of a cluster.
--
-- job:ID               hash: body (JSON as enqueued), state, attempt, token, max, node, tenant, key, digest, seq,
--                      deadline, enqueued, until, ended (microseconds), why, result
-- key:LEN:TENANT:KEY   id of the job that has this idempotency key
-- wait:LEN:NODE:TENANT sorted set of the jobs that can be handed out, by seq
-- round:NODE           list of the tenants that have such jobs, the next one first
-- timers               sorted set of open jobs by when something happens to them: end of lease, of backoff, deadline
-- open, state:STATE    sorted sets of the open and of the ended jobs, by seq
-- ended                sorted set of the ended jobs by when
-- seq, token           counters
-- events               stream: w NODE (there is work), e ID (it ended); trimmed, readers fall back to looking
local P, call = KEYS[1], redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

-- A plain tostring keeps 14 digits, which is too few.
local function num(x) return string.format('%.0f', x) end
local function job_key(id) return P .. 'job:' .. id end
local function idem_key(tenant, key) return P .. 'key:' .. #tenant .. ':' .. tenant .. ':' .. key end
local function wait_key(node, tenant) return P .. 'wait:' .. #node .. ':' .. node .. ':' .. tenant end
local function round_key(node) return P .. 'round:' .. node end

local function event(kind, what)
  call('XADD', P .. 'events', 'MAXLEN', '~', 100000, '*', kind, what)
end

local function schedule(id, at)
  if at > 0 then call('ZADD', P .. 'timers', num(at), id) else call('ZREM', P .. 'timers', id) end
end

-- line_up makes a job one that can be handed out. A tenant's first one puts the tenant at the end of the round.
local function line_up(id, node, tenant, seq)
  local waiting = wait_key(node, tenant)
  if call('ZCARD', waiting) == 0 then call('RPUSH', round_key(node), tenant) end
  call('ZADD', waiting, seq, id)
  event('w', node)
end

local function step_out(id, node, tenant)
  local waiting = wait_key(node, tenant)
  if call('ZREM', waiting, id) == 1 and call('ZCARD', waiting) == 0 then
    call('LREM', round_key(node), 1, tenant)
  end
end

-- finish ends an open job.
local function finish(id, state, why, result)
  local j = call('HMGET', job_key(id), 'node', 'tenant', 'seq')
  step_out(id, j[1], j[2])
  call('HSET', job_key(id), 'state', state, 'why', why, 'result', result, 'ended', num(now))
  call('ZREM', P .. 'timers', id)
  call('ZREM', P .. 'open', id)
  call('ZADD', P .. 'state:' .. state, j[3], id)
  call('ZADD', P .. 'ended', num(now), id)
  event('e', id)
end

-- release gives a leased job back, to wait until ready or dead when it had its last attempt.
local function release(id, why, ready)
  local j = call('HMGET', job_key(id), 'attempt', 'max', 'deadline', 'node', 'tenant', 'seq')
  local deadline = tonumber(j[3])
  if tonumber(j[1]) >= tonumber(j[2]) then
    finish(id, 'dead', why, '')
  elseif deadline > 0 and deadline <= now then
    finish(id, 'dead', 'deadline', '')
  else
    call('HSET', job_key(id), 'state', 'waiting', 'why', why)
    if ready > now then
      if deadline > 0 and deadline < ready then ready = deadline end
      schedule(id, ready)
    else
      line_up(id, j[4], j[5], j[6])
      schedule(id, deadline)
    end
  end
end

-- tick makes what is due happen, at most so many, and returns how many there were.
local function tick(most)
  local due = call('ZRANGEBYSCORE', P .. 'timers', '-inf', num(now), 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    local j = call('HMGET', job_key(id), 'state', 'deadline', 'node', 'tenant', 'seq')
    local deadline = tonumber(j[2])
    if j[1] == 'leased' then
      release(id, 'unavailable: node ' .. j[3] .. ' did not report in time', now)
    elseif deadline > 0 and deadline <= now then
      finish(id, 'dead', 'deadline', '')
    else
      line_up(id, j[3], j[4], j[5])
      schedule(id, deadline)
    end
  end
  return #due
end

-- held tells whether the lease with this token holds.
local function held(id, token)
  local j = call('HMGET', job_key(id), 'state', 'token', 'until')
  return j[1] == 'leased' and j[2] == token and now < tonumber(j[3])
end

