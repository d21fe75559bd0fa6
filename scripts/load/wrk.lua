-- Script for wrk that requests the keys of one kind and checks every response.
--
-- Arguments behind the address: the kind, and the milliseconds after its expiry for which a value
-- may still be served.
--
-- wrk does not say which request a response belongs to. With one connection for each thread requests
-- and responses alternate, so it is the last request. run_load.py must start as many threads as
-- connections.
--
-- keyspace.py makes the same keys and values; keep both in step.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long seconds; long microseconds; } time_of_day;
    int gettimeofday(time_of_day *now, void *zone);
]]
local time_buffer = ffi.new("time_of_day[1]")

local function get_time_ms()
    ffi.C.gettimeofday(time_buffer, nil)
    return tonumber(time_buffer[0].seconds) * 1000 + math.floor(tonumber(time_buffer[0].microseconds) / 1000)
end

local function compute_checksum(name)
    local result = 7
    for index = 1, #name do
        result = (result * 31 + name:byte(index)) % 4294967291
    end
    return result
end

local function make_value(name, length)
    local seed = compute_checksum(name)
    length = length or 40 + seed % 1000
    local parts = { string.format("%s:%08x:", name, seed) }
    local min_length = #parts[1]
    for block = 0, math.ceil((length - min_length) / 8) - 1 do
        parts[#parts + 1] = string.format("%08x", (seed + block * 2654435761) % 4294967296)
    end
    return table.concat(parts):sub(1, math.max(length, min_length))
end

local function compute_large_length(number)
    return 65536 + math.floor(number * (1048576 - 65536) / 15)
end

-- Kinds with their number of keys. Requests are for JSON, for bytes (`raw`), or alternate between both.
local kinds = {
    hot = { keys = 32, alternates = true },
    cold = { keys = 20000 },
    missing = { keys = 1000, missing = true, alternates = true },
    large = { keys = 16, raw = true, length = compute_large_length },
    expiring = { keys = 64, expires = true },
    -- Hot keys, with a new connection for each request.
    fresh = { keys = 32, name = "hot", closes = true },
}

-- Maximum of lines about each kind of problem in a thread: more would repeat themselves.
local max_lines = 3
local lines = {}

local counters = { "replies", "cached", "expiring_values", "lost", "unexpected", "wrong", "stale" }

-- Age in milliseconds from which a request that is pending at the end counts as unanswered. wrk counts
-- late responses, but not missing ones. The value is REDIS_TIMEOUT in load.sh.
local unanswered_after_ms = 20000
local threads = {}

function setup(thread)
    threads[#threads + 1] = thread
    thread:set("number", #threads)
end

local prefix, kind, tolerance_ms
-- The pending request.
local key_number, key, raw
local known = {}

function init(arguments)
    tolerance_ms = tonumber(arguments[2])
    kind = kinds[arguments[1]]
    prefix = "load:" .. (kind.name or arguments[1]) .. ":"
    -- True while the last request has no response, and the time when it was made.
    is_pending, sent_ms = false, 0
    for _, counter in ipairs(counters) do
        _G[counter] = 0
    end
    max_late_ms = -1e9
    math.randomseed(os.time() * 100 + number)
    -- wrk inspects the first request of the first thread without sending it.
    is_inspected = number ~= 1
end

-- Counts a problem and prints it, unless enough lines of its kind were printed.
local function log_problem(counter, text)
    _G[counter] = _G[counter] + 1
    lines[counter] = (lines[counter] or 0) + 1
    if lines[counter] <= max_lines then
        io.stderr:write(counter, ": ", text, "\n")
    end
end

function request()
    if is_pending then
        log_problem("lost", "the connection closed before the response for " .. key)
    end
    is_pending = is_inspected
    is_inspected = true
    key_number = math.random(0, kind.keys - 1)
    key = prefix .. key_number
    raw = kind.raw or kind.alternates and not raw
    -- Read before sending, so that a later delay of wrk makes no value look stale.
    sent_ms = get_time_ms()
    return "GET /" .. (raw and "raw" or "key") .. "/" .. key .. " HTTP/1.1\r\n" ..
        "Host: " .. wrk.headers["Host"] .. "\r\n" .. (kind.closes and "Connection: close\r\n\r\n" or "\r\n")
end

-- Returns the value in a response, and true if it came from the cache. Returns nothing if the response
-- is malformed.
local function parse_response(headers, body)
    if raw then
        return body, (headers["Cache-Status"] or ""):find("; hit", 1, true) ~= nil
    end
    for _, cached in ipairs { true, false } do
        local ending = '","fromCache":' .. tostring(cached) .. "}"
        if body:sub(1, 10) == '{"value":"' and body:sub(-#ending) == ending then
            return body:sub(11, -#ending - 1), cached
        end
    end
end

-- Returns true if the expiring key had this value, and records its lateness.
local function check_expiring(found)
    local digits = found:sub(1, #key + 1) == key .. ":" and found:match("^%d+", #key + 2)
    if not digits or make_value(key .. ":" .. digits) ~= found then
        return false
    end
    expiring_values = expiring_values + 1
    local late_ms = sent_ms - tonumber(digits)
    max_late_ms = math.max(max_late_ms, late_ms)
    if late_ms > tolerance_ms then
        log_problem("stale", string.format("%s was served %d ms after its expiry", key, late_ms))
    end
    return true
end

local function check_value(found)
    if kind.expires then
        return check_expiring(found)
    end
    -- Computed on first use: computing all large values up front would delay the start by seconds.
    known[key_number] = known[key_number] or make_value(key, kind.length and kind.length(key_number))
    return found == known[key_number]
end

function response(status, headers, body)
    is_pending = false
    replies = replies + 1
    if status == 404 and (kind.missing or kind.expires) then
        if body ~= '{"error":"key not found"}' then
            log_problem("wrong", "404 for " .. key .. " says " .. body:sub(1, 200))
        end
    elseif status ~= 200 or kind.missing then
        log_problem("unexpected", status .. " for " .. key .. ": " .. body:sub(1, 200))
    else
        local found, from_cache = parse_response(headers, body)
        if from_cache then
            cached = cached + 1
        end
        if not found or not check_value(found) then
            log_problem("wrong", key .. " is " .. #body .. " bytes: " .. body:sub(1, 100))
        end
    end
end

function done(summary, latency)
    local fields, max_ms = {}, -1e9
    for _, counter in ipairs(counters) do
        local sum = 0
        for _, thread in ipairs(threads) do
            sum = sum + thread:get(counter)
        end
        fields[#fields + 1] = string.format('"%s":%d', counter, sum)
    end
    local unanswered = 0
    for _, thread in ipairs(threads) do
        max_ms = math.max(max_ms, thread:get("max_late_ms"))
        if thread:get("is_pending") and get_time_ms() - thread:get("sent_ms") > unanswered_after_ms then
            unanswered = unanswered + 1
        end
    end
    fields[#fields + 1] = string.format('"unanswered":%d', unanswered)
    for _, error in ipairs { "connect", "read", "write", "timeout" } do
        fields[#fields + 1] = string.format('"%s":%d', error, summary.errors[error])
    end
    print(string.format('RESULT {"requests":%d,"seconds":%.3f,"max_late_ms":%s,"p50":%.6f,"p99":%.6f,%s}',
        summary.requests, summary.duration / 1e6, max_ms > -1e9 and string.format("%d", max_ms) or "null",
        latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, table.concat(fields, ",")))
end
