plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.kotlin.compose) apply false
    alias(libs.plugins.kotlin.jvm) apply false // its version is what the modules for Android get as well
    alias(libs.plugins.kotlin.serialization) apply false
}
