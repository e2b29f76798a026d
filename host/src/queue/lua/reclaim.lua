-- Reclaims messages whose leases have expired. Its cost depends on the messages in
-- flight and on the consumers, not on the messages that wait.
-- KEYS 1: stream   2: deleted
-- ARGV 1: group   2: our consumer   3: the idle ms of an expired lease, where the
--   name of its consumer tells none   4: the same for legacy consumers, which never
--   renew   5: the most messages to reclaim   6: the expected time of Redis' clock
--   in Unix ms, 0 if unknown   7: the bytes after which it ends   8: for how many ms
--   we have been connected   9: the idle ms of a requeued entry   10: the stream's
--   class in tokens   11: how long `deleted` is stored, in ms
-- Returns { now in Unix ms, how many messages others have in flight, the shortest
-- lease in ms in the names of consumers that asked within a minute, or 0, { id,
-- previous consumer, delivery count, { field, value, ... } } ... }; an entry that was
-- deleted has no fields. Afterwards each of these belongs to our consumer, with its
-- delivery count one higher. After a step of the clock idle times are wrong: then it
-- reclaims nothing and returns -1 for the messages of others.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local lease, legacy, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local expected, bytes_left = tonumber(ARGV[6]), tonumber(ARGV[7])
local connected, requeued_idle = tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The name of one of our consumers is a uuid and its lease: the leases that a
-- setting allows, as the worker writes them. Anybody can use a name of their own,
-- so nothing else is read as a lease.
local hex = '[0-9a-f]'
local function digits(count) return string.rep(hex, count) end
local OURS = '^' .. digits(8) .. '%-' .. digits(4) .. '%-' .. digits(4) .. '%-' .. digits(4) .. '%-' .. digits(12)
  .. '%.lease%-([1-9]%d*)$'
local LEASE_MIN, LEASE_MAX = 500, 3600000

local function lease_in(name)
  local text = #name <= 50 and string.match(name, OURS)
  local ms = text and tonumber(text)
  return ms and ms >= LEASE_MIN and ms <= LEASE_MAX and ms or nil
end

-- Whose lease is short is to be looked at as often, also while it has nothing.
-- A missing group is an error of XPENDING, which names it as such.
local shortest, infos = 0, redis.pcall('XINFO', 'CONSUMERS', key, group)
for _, info in ipairs(infos.err and {} or infos) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  local ms = fields.name ~= consumer and lease_in(fields.name)
  if ms and fields.idle < math.max(60000, ms) and (shortest == 0 or ms < shortest) then shortest = ms end
end

-- A step of the clock by less than a third of a lease ends no lease that is renewed
-- every third, and such a difference may come from a busy machine.
local tolerance = math.min(lease, shortest > 0 and shortest or lease, 60000) / 3
if expected > 0 and math.abs(now - expected) > tolerance then return { now, -1, shortest } end
local reclaimed, others, from = { now, 0, shortest }, 0, '-'

-- After a reconnect each lease gets its whole time again.
local timeouts = {}
local function timeout_of(owner)
  if not timeouts[owner] then
    local ms = string.match(owner, '^consumer%-%d+$') and legacy or lease_in(owner) or lease
    timeouts[owner] = connected < ms and math.max(ms, requeued_idle) or ms
  end
  return timeouts[owner]
end

local function has_capacity()
  return #reclaimed - 3 < limit and bytes_left > 0
end

while has_capacity() do
  local rows = redis.call('XPENDING', key, group, from, '+', 100)
  for _, row in ipairs(rows) do
    local id, owner, idle, delivery_count = row[1], row[2], row[3], row[4]
    if owner ~= consumer then
      local expired = timeout_of(owner)
      if idle >= expired and has_capacity() then
        -- XCLAIM removes a deleted entry from the pending list and returns nothing. Its
        -- owner may still run, and have the only copy of the message.
        local entry = redis.call('XCLAIM', key, group, consumer, expired, id)[1]
        for _, text in ipairs(entry and entry[2] or {}) do bytes_left = bytes_left - #text end
        reclaimed[#reclaimed + 1] = { id, owner, delivery_count + 1, entry and entry[2] or {} }
        if not entry then
          redis.call('HSET', KEYS[2], ARGV[10] .. ':' .. id, owner)
          redis.call('PEXPIRE', KEYS[2], ARGV[11])
        end
      else
        others = others + 1
      end
    end
    from = '(' .. id
  end
  if #rows < 100 then break end
  -- Others may also own entries of the pages that are not read.
  if not has_capacity() then others = others + 1 end
end
reclaimed[2] = others
return reclaimed
